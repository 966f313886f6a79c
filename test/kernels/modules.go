package kernels

// ModulesIndex is where the machine finds its Modules, as JSON.
const ModulesIndex = "/lib/modules/index.json"

// Modules are the modules of a kernel by name, with underscores where file names
// may have hyphens.
type Modules map[string]Module

// A Module is one of a kernel's modules, as its .modinfo section describes it.
type Module struct {
	// Path is that of the file in the machine.
	Path string

	// Depends are the names of modules that must be loaded before.
	Depends []string `json:",omitempty"`

	// Aliases are the patterns under which the kernel asks for it.
	Aliases []string `json:",omitempty"`
}
