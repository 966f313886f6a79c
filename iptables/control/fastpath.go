package control

// FastPath is what an instance has the kernel answer.
type FastPath struct {
	// Program is the id of the BPF program; 0: there is none.
	Program uint32 `json:"program"`
	// Problem says why there is none, although the Corefile asks for it.
	Problem string `json:"problem,omitempty"`
	// Hits is the number of queries that this program has answered, Answers that of the
	// answers that it has.
	Hits    uint64 `json:"hits"`
	Answers int    `json:"answers"`
	// Devices are those of pods.
	Devices []FastPathDevice `json:"devices"`
	// Blocks are the server blocks with the directive.
	Blocks []FastPathBlock `json:"blocks"`
}

// FastPathDevice is one device of a pod.
type FastPathDevice struct {
	Device string `json:"device"`
	// Attached is "tcx" or "clsact"; empty: CoreDNS answers there.
	Attached string `json:"attached,omitempty"`
	// Reason says why it is not attached, or may not see all queries.
	Reason string `json:"reason,omitempty"`
}

// FastPathBlock is one server block.
type FastPathBlock struct {
	Block string `json:"block"`
	// Reason says why the kernel answers nothing of it; empty: it may.
	Reason string `json:"reason,omitempty"`
}
