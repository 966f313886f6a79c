package cut

import (
	"errors"
	"fmt"

	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// Level is how much is made of denials in a zone.
type Level uint8

// The levels.
const (
	PerType  Level = iota // a denial answers its question alone
	PerName               // and the other types of the name
	BelowToo              // and the names below
	Learn                 // and names above a denied one are asked for, to deny more
)

// Levels are the levels by zone. A zone has the level of the smallest zone around it.
type Levels struct {
	// Default is the level of names in none of the zones.
	Default Level
	zones   []zoneLevel
}

type zoneLevel struct {
	zone  []byte
	level Level
}

var levelWords = map[string]Level{"type": PerType, "name": PerName, "cut": BelowToo, "learn": Learn}

var (
	errNoLevel = errors.New("no word is given")
	errNoZones = errors.New("learn needs the ZONES of the search path, such as cluster.local")
)

// Add reads the arguments of an option: the word of a level, and the zones that have it, in
// presentation format. Without zones the level is the default.
func (l *Levels) Add(args ...string) error {
	if len(args) == 0 {
		return errNoLevel
	}
	level, ok := levelWords[args[0]]
	switch {
	case !ok:
		return fmt.Errorf("unknown word %q", args[0])
	case len(args) > 1:
	case level == Learn:
		return errNoZones
	default:
		l.Default = level
	}
	for _, text := range args[1:] {
		zone, err := wire.AppendName(nil, text)
		if err != nil {
			return fmt.Errorf("zone %q: %w", text, err)
		}
		l.Set(zone, level)
	}
	return nil
}

// Set sets the level of a zone, in wire format and lower case.
func (l *Levels) Set(zone []byte, level Level) {
	l.zones = append(l.zones, zoneLevel{zone, level})
}

// Of returns the level of a name, and the zone that has it, nil for the default.
func (l *Levels) Of(name []byte) (Level, []byte) {
	level, of := l.Default, []byte(nil)
	for _, z := range l.zones {
		if len(z.zone) >= len(of) && wire.InZone(name, z.zone) {
			level, of = z.level, z.zone
		}
	}
	return level, of
}

// Named returns the zone that the operator has named for names to be learned in, if the name
// is in one, and nil if not.
func (l *Levels) Named(name []byte) []byte {
	if level, zone := l.Of(name); level == Learn {
		return zone
	}
	return nil
}
