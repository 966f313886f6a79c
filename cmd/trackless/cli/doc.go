// Package cli is what all verbs of trackless share: their flags, the errors of a
// wrong command line, exit statuses, and text and JSON on the standard output.
package cli
