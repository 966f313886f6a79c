// Package logger is what packages that know no CoreDNS need of its log.
package logger

// A Logger takes lines of a log, by their importance.
type Logger interface {
	Debugf(format string, args ...any)
	Infof(format string, args ...any)
	Warningf(format string, args ...any)
	Errorf(format string, args ...any)
}
