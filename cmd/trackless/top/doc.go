// Package top is the screen of `trackless conntrack top` and `trackless dns top`: groups with
// their counts, read again and again. Its table of entries is also that of
// `trackless conntrack stats --by`.
package top
