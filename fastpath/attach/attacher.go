package attach

// attacher is a way to attach.
type attacher interface {
	name() string
	// attach attaches the program to the device and returns what detaches it.
	attach(index int) (remove func() error, err error)
	// look tells what is attached to the device.
	look(index int) (neighbours, error)
	// forget has look read again what the kernel announces changes of; 0: of all devices.
	forget(index int)
	// succeed removes what other instances have attached in such a way; onlyDead: those
	// whose process has ended.
	succeed(index int, onlyDead bool) error
}

// neighbours are what is attached to a device.
type neighbours struct {
	attached bool // ours
	// before and behind name programs of others: one that runs before ours and may end the
	// way of a query, and one that does not see the queries that ours answers. Without ours
	// all are behind it.
	before, behind string
	// rival tells that another instance is attached in a way that stays when its process ends.
	rival bool
}
