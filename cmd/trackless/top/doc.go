// Package top is the screen of `trackless conntrack top`: groups of entries with their
// counts, read again and again. Its table is also that of `trackless conntrack stats --by`.
package top
