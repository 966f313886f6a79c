module github.com/trackless-dns/trackless

go 1.26.0
