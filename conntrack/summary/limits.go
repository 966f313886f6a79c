package summary

import (
	"path/filepath"

	"github.com/trackless-dns/trackless/conntrack/sysctl"
)

// Limits are the settings of connection tracking, and what they cost. Their JSON
// names do not change.
type Limits struct {
	Entries  uint64           `json:"entries"`
	Settings []sysctl.Setting `json:"settings"`
	Memory   sysctl.Memory    `json:"memory"`
	// NowBytes and LimitBytes are what the table takes now and when full.
	NowBytes   uint64 `json:"now_bytes"`
	LimitBytes uint64 `json:"limit_bytes"`
	// Hashsize are the places that set the module's parameter hashsize.
	Hashsize []sysctl.SettingFile `json:"hashsize_files,omitempty"`
}

// ReadLimits reads them below root; no privileges are needed.
func ReadLimits(root string) (*Limits, error) {
	settings, err := sysctl.ReadSettings(root)
	if err != nil {
		return nil, err
	}
	limits, err := sysctl.ReadLimits(filepath.Join(root, "proc"))
	if err != nil {
		return nil, err
	}
	r := &Limits{Entries: limits.Count, Settings: settings, Memory: sysctl.ReadMemory(root), Hashsize: sysctl.HashsizeFiles(root)}
	r.NowBytes = r.Memory.Table(limits.Count, limits.Buckets)
	r.LimitBytes = r.Memory.Table(limits.Max, limits.Buckets)
	return r, nil
}
