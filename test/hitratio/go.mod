module github.com/trackless-dns/trackless/test/hitratio

go 1.26.0

toolchain go1.27.4

require (
	github.com/maypok86/otter/v2 v2.4.0
	github.com/trackless-dns/trackless v0.0.0
)

require (
	github.com/miekg/dns v1.1.73 // indirect
	golang.org/x/net v0.62.0 // indirect
	golang.org/x/sys v0.50.0 // indirect
)

replace github.com/trackless-dns/trackless => ../..
