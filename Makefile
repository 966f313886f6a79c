# Everything that is done with this repository, one target each; `make help`
# lists them. What a target needs it installs through `make deps`.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# The Go that go.mod names, for every target: the go command takes it from the
# module proxy where the machine has another one. By hand, `go build` works with
# any Go since the line `go` of go.mod; `make GOTOOLCHAIN=local` does, too.
export GOTOOLCHAIN := $(shell sed -n 's/^toolchain //p' go.mod)

# Tools are named by what they were built from: a linter built with an older Go
# refuses to read code for a newer one.
TOOLS     := $(CURDIR)/.tools
GOLANGCI_VERSION  := v2.15.0
VULNCHECK_VERSION := v1.9.0
COREDNS_VERSION   := v1.15.0
GOLANGCI  := $(TOOLS)/golangci-lint-$(GOLANGCI_VERSION)-$(GOTOOLCHAIN)
VULNCHECK := $(TOOLS)/govulncheck-$(VULNCHECK_VERSION)-$(GOTOOLCHAIN)
COREDNS   := $(TOOLS)/coredns-$(COREDNS_VERSION)-$(GOTOOLCHAIN)

# program:package, or file:package, as Debian names them. Trackless itself runs
# none of them; tests compare with their output. A target that needs more adds it.
PROGRAMS := ip:iproute2 nft:nftables iptables:iptables conntrack:conntrack dig:bind9-dnsutils tmux:tmux

# RELEASE and REGISTRY. A build between releases says so: 0.1.0+3.gHASH is three
# commits after v0.1.0, 0.1.0-dev+gHASH comes before it. Sources without git, or
# without its history, are those of the release.
include deploy/release.env
VERSION ?= $(shell deploy/version/describe.sh $(RELEASE))
COMMIT  := $(shell git rev-parse HEAD 2>/dev/null)$(shell git diff --quiet HEAD 2>/dev/null || ! git rev-parse HEAD >/dev/null 2>&1 || echo -dirty)
CREATED := $(shell TZ=UTC git show -s --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd 2>/dev/null || echo 1970-01-01T00:00:00Z)
LDFLAGS = -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)
# The same sources give the same bytes: no paths, no state of the checkout, and
# no setting of this machine that the go command would write into the binary.
PRODUCT := CGO_ENABLED=0 GOOS=linux GOFLAGS= GOEXPERIMENT= GOAMD64=v1 GOARM64=v8.0 GOARM=7 GOPPC64=power8
PRODUCT_FLAGS = -trimpath -buildvcs=false -ldflags "$(LDFLAGS)"
# The architectures of an image, as GOARCH; arm is arm/v7.
ARCHS ?= amd64 arm64
IMAGE ?= $(REGISTRY)/trackless
FUZZTIME ?= 10m
LAB_FLAGS ?=
CHAOS_FLAGS ?=
LEDGER_FLAGS ?=
HANDOVER_FLAGS ?=
FLOOD_FLAGS ?=
BENCH_FLAGS ?=
FASTPATH_FLAGS ?=
E2E_FLAGS ?=
CHART_FLAGS ?=
VM_FLAGS ?=

# The folders of all modules but the one at the top, whose dependencies are not
# the product's. Nobody has to list a new one.
MODULES := $(patsubst ./%/go.mod,%,$(sort $(shell find . -mindepth 2 -name go.mod -not -path '*/testdata/*' -not -path './.*' -not -path './bin/*')))
# Kubernetes takes ten minutes to compile, and vet and linters ask for that: of
# these modules only their own packages are type-checked.
NOT_COMPILED := test/e2e/cluster/hyper
COMPILED := $(filter-out $(NOT_COMPILED),$(MODULES))

# The tests that `go test ./...` leaves out: those that need root and the kernel's
# features, and those that take seconds.
TAGS := privileged,load
# Every tag that a test of the tree stands behind, for what reads all of it.
ALL_TAGS := $(TAGS),chaos,e2e,kernels,monitoring

# A privileged test may not skip where it can run.
export TRACKLESS_REQUIRE_PRIVILEGED ?= $(if $(filter 0,$(shell id -u)),1,0)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "%-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: deps
deps: ## install what tests need (Debian packages, Go itself, Go modules)
	@missing=; for p in $(PROGRAMS); do command -v $${p%%:*} >/dev/null || [[ $$p = /* && -e $${p%%:*} ]] || missing+=" $${p##*:}"; done; \
	if [ -n "$$missing" ]; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends $$missing; \
		else \
			echo "make deps: not installed:$$missing. Tests that compare with them will skip; install them as root." >&2; \
		fi; \
	fi
	@go mod download
	@for module in $(COMPILED); do (cd $$module && go mod download) || exit; done

.PHONY: build
build: ## build bin/trackless, a static binary
	CGO_ENABLED=0 go build $(PRODUCT_FLAGS) -o bin/trackless ./cmd/trackless

# The modules that write images and releases; their dependencies are not the
# product's.
IMAGES := deploy/image

.PHONY: image
image: ## write bin/image/trackless-ARCH.tar for containerd and Docker, and trackless.tar with all of ARCHS
	@set -e; for arch in $(ARCHS); do \
		$(PRODUCT) GOARCH=$$arch go build $(PRODUCT_FLAGS) -o bin/image/trackless-$$arch ./cmd/trackless; \
	done
	@cd $(IMAGES) && go run . -o $(CURDIR)/bin/image -ref $(IMAGE) -version $(VERSION) -revision "$(COMMIT)" -created $(CREATED) \
		$(foreach arch,$(ARCHS),$(arch)=$(CURDIR)/bin/image/trackless-$(arch))

# What `make release` builds for. deploy/image knows more: arm, ppc64le, riscv64
# and s390x.
RELEASE_ARCHS ?= amd64 arm64
# Platforms of the kubectl plugin, as GOOS/GOARCH; with none the release has no plugin.
PLUGIN_PLATFORMS ?= linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64
RELEASE_DIR ?= $(CURDIR)/bin/release/$(RELEASE)
RELEASE_WORK := $(CURDIR)/bin/release/work

# The plugin is a module of its own, and the first build compiles Kubernetes' client.
.PHONY: kubectl-plugin
kubectl-plugin: ## build bin/kubectl-trackless, the kubectl plugin, for this machine (minutes the first time)
	cd deploy/kubectl-trackless && CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w" -o $(CURDIR)/bin/kubectl-trackless .

.PHONY: release
release: VERSION := $(RELEASE)
release: ## write a release into bin/release/VERSION: images, programs, chart, manifests, SBOM, provenance, licenses, checksums
	@[ -n "$(DIRTY)" ] || git diff --quiet HEAD || { echo "make release: files are changed and not committed, so that no commit has what would be released; commit or stash them, or set DIRTY=1 for a rehearsal" >&2; exit 1; }
	@git describe --tags --exact-match --match v$(RELEASE) >/dev/null 2>&1 || echo "make release: a rehearsal, since this commit is not tagged v$(RELEASE)" >&2
	@rm -rf $(RELEASE_DIR) $(RELEASE_WORK)
	@set -e; for arch in $(RELEASE_ARCHS); do \
		$(PRODUCT) GOARCH=$$arch go build $(PRODUCT_FLAGS) -o $(RELEASE_WORK)/$$arch/trackless ./cmd/trackless; \
	done
	@cd $(IMAGES) && go run . -o $(RELEASE_WORK) -ref $(REGISTRY)/trackless -version $(RELEASE) -revision $(COMMIT) -created $(CREATED) \
		$(foreach arch,$(RELEASE_ARCHS),$(arch)=$(RELEASE_WORK)/$(arch)/trackless)
	@set -e; cd deploy/kubectl-trackless; for platform in $(PLUGIN_PLATFORMS); do \
		$(PRODUCT) GOOS=$${platform%/*} GOARCH=$${platform#*/} go build -trimpath -buildvcs=false -ldflags "-s -w" -o $(RELEASE_WORK)/plugin/$$platform .; \
	done
	@cd deploy/release && go run . -o $(RELEASE_DIR) -source $(CURDIR) -images $(RELEASE_WORK) \
		-registry $(REGISTRY) -version $(RELEASE) -commit $(COMMIT) -created $(CREATED) \
		$(foreach platform,$(PLUGIN_PLATFORMS),-plugin $(platform)=$(RELEASE_WORK)/plugin/$(platform)) \
		$(foreach arch,$(RELEASE_ARCHS),$(arch)=$(RELEASE_WORK)/$(arch)/trackless)
	@rm -rf $(RELEASE_WORK)

# A second checkout elsewhere, and a build cache of its own: nothing but the
# commit is the same.
.PHONY: release-check
release-check: release ## make the same release in another folder, with nothing built before, and compare the bytes
	@set -e; other=$$(mktemp -d); \
	trap 'git worktree remove --force "$$other/trackless"; rm -rf "$$other"' EXIT; \
	git worktree add --quiet --detach "$$other/trackless" HEAD; \
	GOCACHE=$$other/cache $(MAKE) --no-print-directory -C "$$other/trackless" release RELEASE_DIR="$$other/release" RELEASE_ARCHS="$(RELEASE_ARCHS)" PLUGIN_PLATFORMS="$(PLUGIN_PLATFORMS)"; \
	diff -r $(RELEASE_DIR) "$$other/release" && echo "make release-check: the same bytes"

.PHONY: set-version
set-version: ## set the version of the next release everywhere: make set-version RELEASE=X.Y.Z
	go run ./deploy/version $(RELEASE)

# It runs nothing but the program that was built, so it needs no `deps`.
.PHONY: lab
lab: build ## before and after on this machine: conntrack entries through kube-proxy and through Trackless (root)
	bin/trackless lab $(LAB_FLAGS)

# promtool brings a dozen packages with it.
test check: PROGRAMS += promtool:prometheus
# The resolvers that pods have.
test check: PROGRAMS += cc:gcc /usr/include/netdb.h:libc6-dev musl-gcc:musl-tools /usr/include/ares.h:libc-ares-dev \
	javac:default-jdk-headless /usr/share/java/netty-resolver-dns.jar:libnetty-java
.PHONY: test
test: deps ## run all tests; as root also those that need network namespaces
	go test -tags $(TAGS) -timeout 20m ./...
	@set -e; for module in $(COMPILED); do echo "go test in $$module"; (cd $$module && go test -tags $(TAGS) ./...); done

# The page is a thing of the browser: it is measured in one. Without chromium
# `make test` leaves that out.
.PHONY: test-page
test-page: deps ## open the page of trackless compare in Chromium: wide, narrow, light, dark, printed
	@$(MAKE) --no-print-directory deps PROGRAMS=chromium:chromium
	TRACKLESS_REQUIRE_CHROMIUM=1 go test -tags $(TAGS) -count 1 ./test/page

.PHONY: test-chaos
test-chaos: deps build ## play every fault under load, with and without what it tests, and 200 starts and stops (root, 15 minutes)
	TRACKLESS_PROGRAM=bin/trackless go run ./test/chaos/matrix -report bin/chaos.json -update-page docs/chaos.md $(CHAOS_FLAGS)
	TRACKLESS_PROGRAM=$(CURDIR)/bin/trackless go test -tags chaos,$(TAGS) -count 1 -timeout 30m -run 'TestCycles|TestReloads' -v ./test/chaos

.PHONY: test-ledger
test-ledger: deps build ## what Trackless says it saves beside conntrack -L of the same load tracked, each second (root, 8 minutes)
	TRACKLESS_PROGRAM=bin/trackless go run ./test/ledger $(LEDGER_FLAGS)

.PHONY: test-handover
test-handover: deps build ## 20 replacements of an instance in a row under load, and one with a full cache of 32 MiB: what clients and kube-dns notice (root, an idle machine, 11 minutes)
	go run ./test/handover -program bin/trackless $(HANDOVER_FLAGS)
	$(if $(HANDOVER_FLAGS),,go run ./test/handover -program bin/trackless -rounds 1 -names 80000 -warm-up 140s)

.PHONY: test-flood
test-flood: deps build $(COREDNS) ## what one pod can do to the DNS of its node, beside CoreDNS (root, 3 minutes)
	go run ./test/flood -program bin/trackless -coredns $(COREDNS) $(FLOOD_FLAGS)

.PHONY: test-fair
test-fair: deps build $(COREDNS) ## what other pods lose to one that floods, over UDP and TCP, beside CoreDNS with and without shed (root, half an hour)
	go run ./test/fair -program bin/trackless -coredns $(COREDNS) $(FAIR_FLAGS)

.PHONY: test-throttle
test-throttle: deps build ## steady loads under a CPU limit of 100m, with and without notrack (root, 6 minutes)
	go run ./test/flood -program bin/trackless -cpu 100 $(THROTTLE_FLAGS)
	go run ./test/flood -program bin/trackless -cpu 100 -rate 500 -time 30s -lossless $(THROTTLE_FLAGS)

.PHONY: monitoring
monitoring: ## write dashboard, PrometheusRule and the chart's copies from deploy/monitoring
	go run ./deploy/monitoring

# Debian's clang makes the same bytes from the same sources, in any folder. The
# headers are linux-libc-dev's, which lie in a folder of the architecture.
BPF_PROGRAMS := clang-14:clang-14 llvm-strip-14:llvm-14
BPF2GO = cd fastpath/kernel && go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -tags linux -no-global-types \
	-go-package kernel -output-dir . answer bpf/answer.c -- -O2 -fno-strict-aliasing -Wall -Werror \
	-I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu

bpf check-bpf: PROGRAMS += $(BPF_PROGRAMS)
.PHONY: bpf
bpf: deps ## compile the kernel's program in fastpath/kernel; `make check` fails when it is not current
	@test -e /usr/include/linux/bpf.h || $(MAKE) --no-print-directory deps PROGRAMS=none:linux-libc-dev
	$(BPF2GO)

.PHONY: check-bpf
check-bpf: deps # the committed program is what its sources give
	@test -e /usr/include/linux/bpf.h || $(MAKE) --no-print-directory deps PROGRAMS=none:linux-libc-dev
	@out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && ($(subst -output-dir .,-output-dir $$out,$(BPF2GO))) >/dev/null && \
	for f in answer_bpfel.o answer_bpfel.go; do cmp $$out/$$f fastpath/kernel/$$f || \
		{ echo "make check-bpf: fastpath/kernel/$$f is not what bpf/answer.c gives; run make bpf and commit the result" >&2; exit 1; }; done

.PHONY: chart
chart: ## write the tables of values in the chart's README from values.yaml and its schema
	go run ./deploy/helm/readme

.PHONY: test-monitoring
test-monitoring: PROGRAMS += prometheus:prometheus prometheus-node-exporter:prometheus-node-exporter
test-monitoring: deps ## every query of dashboard and alerts against a real Prometheus, under load and faults (root, 2 minutes)
	go test -tags monitoring,$(TAGS) -count 1 -timeout 10m -v ./test/monitoring

.PHONY: e2e
e2e: PROGRAMS += openssl:openssl tc:iproute2 nsenter:util-linux sysctl:procps git:git jq:jq
e2e: deps test-chart ## install on a real Kubernetes of two nodes, and break it; the first time it is built for a quarter of an hour (root)
	go test -tags e2e,$(TAGS) -count 1 -timeout 45m -v ./test/e2e $(E2E_FLAGS)

# The cluster's programs are built by the machine's own Go; they are not what is
# tested.
.PHONY: test-chart
test-chart: deps ## what the chart and the overlays render, and which values they refuse; with the programs of `make e2e`
	GOTOOLCHAIN= test/e2e/cluster/build.sh
	go test -tags e2e,$(TAGS) ./test/e2e/chart $(if $(CHART_FLAGS),-args $(CHART_FLAGS))

# Programs that go into the machine, besides those that other tests need.
test-vm: PROGRAMS += qemu-system-x86_64:qemu-system-x86 sysctl:procps tc:iproute2 xz:xz-utils
# Hits in the kernel also on these. VM_FLAGS ask for something else.
VM_ALSO := 5.10 6.12
.PHONY: test-vm
test-vm: deps ## the kernel's part on Debian 6.1, hits in the kernel also on 5.10 and 6.12, in a machine emulated in software; no root, no KVM (half an hour)
	go build -o bin/vm ./test/kernels/vm
	bin/vm $(VM_FLAGS)
	$(if $(VM_FLAGS),,@set -e; for series in $(VM_ALSO); do bin/vm -kernel $$series -only also; done)

.PHONY: check
check: deps $(GOLANGCI) ## formatting, lint, import directions, race detector, fuzz smoke, known vulnerabilities
	go mod tidy -diff
	go vet -tags $(ALL_TAGS) ./...
	go vet ./...
	$(GOLANGCI) run ./...
	@$(MAKE) --no-print-directory check-modules
	@$(MAKE) --no-print-directory check-bpf
	promtool check rules deploy/monitoring/rules.yaml
	promtool test rules deploy/monitoring/rules_test.yaml
	@# The type-check has one thread, and tests wait for much.
	@$(MAKE) --no-print-directory type-check & checking=$$!; \
	echo "go test -race -short ./..."; go test -race -short -tags $(TAGS) -timeout 20m ./...; tested=$$?; \
	wait $$checking && exit $$tested
	$(MAKE) --no-print-directory fuzz FUZZTIME=3s
	$(MAKE) --no-print-directory vulncheck

# What check does to the module at the top, done to the others that are compiled.
.PHONY: check-modules
check-modules: $(GOLANGCI)
	@set -e; for module in $(MODULES); do echo "go mod tidy -diff in $$module"; (cd $$module && go mod tidy -diff); done
	@set -e; for module in $(COMPILED); do echo "go vet, golangci-lint in $$module"; \
		(cd $$module && go vet -tags $(TAGS) ./... && $(GOLANGCI) run --config $(CURDIR)/.golangci.yml ./...); done

.PHONY: type-check
type-check: # what is too large to compile
	@cd test/typecheck && go run . $(addprefix $(CURDIR)/,$(NOT_COMPILED))

.PHONY: vulncheck
vulncheck: $(VULNCHECK)
	@if out=$$($(VULNCHECK) ./... 2>&1); then echo "govulncheck: nothing known"; \
	elif grep -q 'fetching vulnerabilities' <<<"$$out"; then echo "govulncheck: its data cannot be had here; not checked"; \
	else echo "$$out"; exit 1; fi

.PHONY: bench
bench: deps ## run the benchmarks of all packages, and bench-idle
	go test -tags $(TAGS) -run '^$$' -bench . -benchmem ./...
	$(MAKE) bench-idle

# node-cache beside it: BENCH_FLAGS='-node-cache FILE'. No module proxy has it.
.PHONY: bench-idle
bench-idle: deps build $(COREDNS) ## what a server costs while nobody asks, and at 10 queries a second, beside CoreDNS (root, 3 minutes)
	go run ./test/bench -program bin/trackless -coredns $(COREDNS) $(BENCH_FLAGS)

# The two fastest servers that Debian has, and CoreDNS.
bench-fastpath: PROGRAMS += unbound:unbound dnsdist:dnsdist dnsperf:dnsperf taskset:util-linux
.PHONY: bench-fastpath
bench-fastpath: deps build $(COREDNS) ## what a cached answer costs with hits in the kernel and without, beside CoreDNS, unbound and dnsdist (root, an idle machine, 4 minutes)
	go build -o bin/bench-fastpath ./test/bench/fastpath
	bin/bench-fastpath -program bin/trackless -coredns $(COREDNS) $(FASTPATH_FLAGS)

.PHONY: test-diff
test-diff: deps ## play 200,000 random steps to CoreDNS's cache and to ours, and to mutants of ours; 1,100,000 packets to servers with sockets of fastpath and without
	go test -tags $(TAGS) ./test/differential -run SameAsStock -count 1 -v -timeout 30m -args -steps 200000
	go test -tags $(TAGS) ./test/differential -run Mutants -count 1 -v -timeout 60m -args -mutants -steps 50000
	go test -tags $(TAGS) ./plugin/fastpath -run TheSameRepliesToVeryMany -count 1 -v -timeout 60m -args -queries 100000 -packets 1000000

.PHONY: test-soak
test-soak: deps ## a minute of everything at once under the race detector, and 10 million names through the cache
	go test -race -tags $(TAGS) ./plugin/cache -run TestEverythingAtOnce -count 1 -v -timeout 10m -args -soak 60s
	go test -tags $(TAGS) ./plugin/cache -run TestMemoryIsBounded -count 1 -v -timeout 20m -args -names 10000000

.PHONY: bigtable
bigtable: deps ## list and stats on 250,000 entries beside conntrack -L, and misses with a full table (root)
	TRACKLESS_BIG_TABLE=1 go test -tags $(TAGS) -count=1 -run TestBigTable -v ./cmd/trackless
	TRACKLESS_BIG_TABLE=1 go test -tags $(TAGS) -count=1 -run TestMissesGoStraight -v ./test/integration

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME (default 10m)
	@set -e; grep -rl --include='*_test.go' '^func Fuzz' . | while read -r f; do \
		for t in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' $$f); do \
			echo "fuzz $$t in $$(dirname $$f) for $(FUZZTIME)"; \
			go test -tags $(TAGS) -run '^$$' -fuzz "^$$t\$$" -fuzztime $(FUZZTIME) $$(dirname $$f) | tail -1; \
		done; \
	done

.PHONY: clean
clean: ## remove what the build and the tools left
	rm -rf bin .tools
	go clean -testcache

$(GOLANGCI):
	GOBIN=$(TOOLS) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	mv $(TOOLS)/golangci-lint $@

$(VULNCHECK):
	GOBIN=$(TOOLS) go install golang.org/x/vuln/cmd/govulncheck@$(VULNCHECK_VERSION)
	mv $(TOOLS)/govulncheck $@

$(COREDNS):
	GOBIN=$(TOOLS) CGO_ENABLED=0 go install -ldflags "-s -w" github.com/coredns/coredns@$(COREDNS_VERSION)
	mv $(TOOLS)/coredns $@
