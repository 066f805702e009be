//go:build packaging

package packaging_test

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"github.com/cloakroom-bff/cloakroom/internal/config"
)

var update = flag.Bool("update", false, "write configs/kubernetes")

const (
	chart     = "../../configs/helm"
	example   = chart + "/example.yaml"
	manifests = "../../configs/kubernetes"
)

// valuesFiles are files with complete values.
var valuesFiles = []string{example, chart + "/ci/all-values.yaml", chart + "/ci/file-values.yaml"}

// kubernetesVersions are those whose schemas the manifests have to match.
// kubectl-validate has those up to 1.30. "schemas" are of a newer version,
// which the Makefile names.
var kubernetesVersions = []string{"1.28", "1.30", "schemas"}

// tool returns the path of a program, or of a file, that make packaging-setup
// installs.
func tool(t *testing.T, name string) string {
	t.Helper()
	dir := os.Getenv("CLOAKROOM_PACKAGING")
	if dir == "" {
		t.Fatal("CLOAKROOM_PACKAGING is not set; run make test-packaging")
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v; run make packaging-setup", err)
	}
	return path
}

// command runs a program and returns what it prints.
func command(name string, args ...string) (string, error) {
	c := exec.Command(name, args...)
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s%s", filepath.Base(name), strings.Join(args, " "), err, &stdout, &stderr)
	}
	return stdout.String(), nil
}

// template renders the chart as the release cloakroom.
func template(t *testing.T, args ...string) (string, error) {
	t.Helper()
	return command(tool(t, "bin/helm"), append([]string{"template", "cloakroom", chart}, args...)...)
}

// object is a Kubernetes object, or a part of one.
type object map[string]any

// at returns the value at a path such as spec.ports.0.name, or nil.
func (o object) at(path string) any {
	var v any = map[string]any(o)
	for name := range strings.SplitSeq(path, ".") {
		switch parent := v.(type) {
		case map[string]any:
			v = parent[name]
		case []any:
			var i int
			if _, err := fmt.Sscan(name, &i); err != nil || i >= len(parent) {
				return nil
			}
			v = parent[i]
		default:
			return nil
		}
	}
	return v
}

// objects are the objects of a rendered chart, in order.
type objects []object

// render renders the chart.
func render(t *testing.T, args ...string) objects {
	t.Helper()
	text, err := template(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, text)
}

func parse(t *testing.T, text string) (all objects) {
	t.Helper()
	documents, err := yaml.NewLoader(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	for {
		var o map[string]any
		if err := documents.Load(&o); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		if o != nil {
			all = append(all, o)
		}
	}
}

// get returns the object of a kind and with a name.
func (all objects) get(t *testing.T, kind, name string) object {
	t.Helper()
	i := slices.IndexFunc(all, func(o object) bool { return o["kind"] == kind && o.at("metadata.name") == name })
	if i < 0 {
		t.Fatalf("got no %s %s", kind, name)
	}
	return all[i]
}

// kinds returns the kinds of the objects, sorted.
func (all objects) kinds() []string {
	var kinds []string
	for _, o := range all {
		kinds = append(kinds, o["kind"].(string))
	}
	slices.Sort(kinds)
	return kinds
}

// wantValues compares values of an object by their path.
func wantValues(t *testing.T, o object, want map[string]any) {
	t.Helper()
	for path, value := range want {
		if got := o.at(path); !reflect.DeepEqual(got, value) {
			t.Errorf("%s: got %#v, want %#v", path, got, value)
		}
	}
}

func TestChartPassesLint(t *testing.T) {
	t.Parallel()
	for _, values := range append([]string{""}, valuesFiles...) {
		args := []string{"lint", "--strict", chart}
		if values != "" {
			args = append(args, "-f", values)
		}
		if _, err := command(tool(t, "bin/helm"), args...); err != nil {
			t.Error(err)
		}
	}
}

func TestChartMatchesTheSchemasOfKubernetes(t *testing.T) {
	for _, values := range valuesFiles {
		text, err := template(t, "-f", values)
		if err != nil {
			t.Fatal(err)
		}
		for _, version := range kubernetesVersions {
			if err := validate(t, version, text); err != nil {
				t.Errorf("%s, Kubernetes %s: %v", values, version, err)
			}
		}
	}
}

// validate compares manifests with the schemas of a version of Kubernetes, and
// a ServiceMonitor with its CustomResourceDefinition.
func validate(t *testing.T, version, text string) error {
	t.Helper()
	file := filepath.Join(t.TempDir(), "manifests.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBECONFIG", os.DevNull) // no cluster is asked
	args := []string{"--version", version}
	if version == "schemas" {
		args = []string{"--local-schemas", tool(t, version)}
	}
	_, err := command(tool(t, "bin/kubectl-validate"), append(args, "--local-crds", tool(t, "crds"), file)...)
	return err
}

func TestValidationFindsMistakes(t *testing.T) {
	text, err := template(t, "-f", chart+"/ci/all-values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, mistake := range []struct{ right, wrong string }{
		{"readinessProbe:", "readynessProbe:"},
		{"periodSeconds: 10", "periodSeconds: often"},
		{"unhealthyPodEvictionPolicy:", "unhealthyPodsEvictionPolicy:"},
		{"interval: 30s", "interval: 30"},  // of the ServiceMonitor
		{"type: PathPrefix", "type: Path"}, // of the HTTPRoute
		{"request: 0s", "request: 0"},
	} {
		broken := strings.Replace(text, mistake.right, mistake.wrong, 1)
		if broken == text {
			t.Errorf("the chart does not render %q", mistake.right)
		}
		for _, version := range kubernetesVersions {
			if validate(t, version, broken) == nil {
				t.Errorf("%s instead of %s: got no error for Kubernetes %s", mistake.wrong, mistake.right, version)
			}
		}
	}
}

func TestChartRendersWhatIsEnabled(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		values string
		want   []string
	}{
		{example, []string{"ConfigMap", "Deployment", "Ingress", "NetworkPolicy", "PodDisruptionBudget", "Service"}},
		{chart + "/ci/all-values.yaml", []string{"ConfigMap", "Deployment", "HTTPRoute", "HorizontalPodAutoscaler",
			"Ingress", "NetworkPolicy", "PodDisruptionBudget", "Service", "Service", "ServiceMonitor"}},
		{chart + "/ci/file-values.yaml", []string{"ConfigMap", "Deployment", "Service"}},
	} {
		if got := render(t, "-f", test.values).kinds(); !slices.Equal(got, test.want) {
			t.Errorf("%s: got %v, want %v", test.values, got, test.want)
		}
	}
}

// The pods comply with the Pod Security Standard "restricted", and have no
// access to the Kubernetes API.
func TestPodIsHardened(t *testing.T) {
	t.Parallel()
	for _, values := range valuesFiles {
		pod := object(render(t, "-f", values).get(t, "Deployment",
			"cloakroom").at("spec.template.spec").(map[string]any))
		wantValues(t, pod, map[string]any{
			"automountServiceAccountToken":                          false,
			"enableServiceLinks":                                    false,
			"securityContext.runAsNonRoot":                          true,
			"securityContext.runAsUser":                             65532,
			"securityContext.fsGroup":                               65532,
			"securityContext.seccompProfile.type":                   "RuntimeDefault",
			"containers.0.securityContext.readOnlyRootFilesystem":   true,
			"containers.0.securityContext.allowPrivilegeEscalation": false,
			"containers.0.securityContext.capabilities.drop":        []any{"ALL"},
			"volumes.1.secret.defaultMode":                          0o440,
			"hostNetwork":                                           nil,
		})
		if pod.at("containers.0.resources.limits.cpu") != nil {
			t.Errorf("%s: got a CPU limit, want none", values)
		}
	}
}

func TestDefaultResources(t *testing.T) {
	t.Parallel()
	wantValues(t, render(t, "-f", example).get(t, "Deployment", "cloakroom"), map[string]any{
		"spec.replicas": 2,
		"spec.template.spec.containers.0.resources": map[string]any{
			"requests": map[string]any{"cpu": "200m", "memory": "256Mi"},
			"limits":   map[string]any{"memory": "512Mi"},
		},
		"spec.strategy.rollingUpdate.maxUnavailable": 0,
	})
}

func TestProbes(t *testing.T) {
	t.Parallel()
	for _, values := range valuesFiles {
		wantValues(t, render(t, "-f", values).get(t, "Deployment", "cloakroom"), map[string]any{
			"spec.template.spec.containers.0.startupProbe.httpGet": map[string]any{"path": "/healthz",
				"port": "admin"},
			"spec.template.spec.containers.0.livenessProbe.httpGet": map[string]any{"path": "/healthz",
				"port": "admin"},
			"spec.template.spec.containers.0.readinessProbe.httpGet": map[string]any{"path": "/readyz",
				"port": "admin"},
			"spec.template.spec.containers.0.ports.0.name": "http",
			"spec.template.spec.containers.0.ports.1.name": "admin",
		})
	}
}

// The pod is not killed before the broker has ended: 20 seconds for token
// refreshes and idle connections.
func TestGracePeriodCoversTheShutdown(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		delay, grace string
		want         int
	}{
		{"null", "null", 5 + 30 + 20}, // the defaults of the program in Kubernetes
		{"0s", "30s", 0 + 30 + 20},
		{"0", "1m30s", 0 + 90 + 20},
		{"1h2m3s", "10s", 3723 + 10 + 20},
		{"1.5s", "500ms", 2 + 1 + 20},
		{"2500us", "1ns", 1 + 1 + 20},
	} {
		server := fmt.Sprintf(
			`config.server={"shutdown_delay": %s, "shutdown_grace": %s, "public_url": "https://app.example.com"}`,
			quote(test.delay), quote(test.grace))
		deployment := render(t, "-f", example, "--set-json", server).get(t, "Deployment", "cloakroom")
		if got := deployment.at("spec.template.spec.terminationGracePeriodSeconds"); got != test.want {
			t.Errorf("delay %s, grace %s: got %v, want %d", test.delay, test.grace, got, test.want)
		}
	}
}

// quote returns a JSON string, or null.
func quote(text string) string {
	if text == "null" {
		return text
	}
	return `"` + text + `"`
}

// Cloakroom applies a changed configuration by itself, so the pod template
// changes only for the keys that need a restart.
func TestPodsRestartOnlyForKeysThatNeedIt(t *testing.T) {
	t.Parallel()
	podTemplate := func(args ...string) any {
		t.Helper()
		return render(t, append([]string{"-f", example, "--skip-schema-validation",
			"--set", "config.server.tls.cert_file=/run/tls.crt", "--set", "config.server.tls.key_file=/run/tls.key",
		}, args...)...).get(t, "Deployment", "cloakroom").at("spec.template")
	}
	unchanged := podTemplate()
	values := map[string]string{ // that the templates accept
		"server.listen": "0.0.0.0:18080", "server.admin_listen": "0.0.0.0:19090", "store.url": "redis://other:6379",
	}
	secrets := []string{"server.admin_token", "oidc.client_secret", "oidc.client_key", "session.keys"} // are refused
	reloaded := []string{"--set", "config.routes[0].upstream=http://other"}
	for _, key := range config.Keys {
		set := "config." + key.Name + "=" + cmp.Or(values[key.Name], "other")
		switch {
		case strings.Contains(key.Name, "[]"), slices.Contains(secrets, key.Name):
		case strings.HasPrefix(key.Name, "server.shutdown_"): // changes the grace period of the pods
		case key.AppliedOnReload():
			reloaded = append(reloaded, "--set", set)
		case reflect.DeepEqual(podTemplate("--set", set), unchanged):
			t.Errorf("%s: a change does not replace the pods", key.Name)
		}
	}
	if reflect.DeepEqual(podTemplate("--set", "config.server.tls=null"), unchanged) {
		t.Error("server.tls: turning it off does not replace the pods")
	}
	if !reflect.DeepEqual(podTemplate(reloaded...), unchanged) {
		t.Errorf("a change that needs no restart replaces the pods: one of %v", reloaded)
	}
}

func TestSelectorsAndPortsFitTogether(t *testing.T) {
	t.Parallel()
	all := render(t, "-f", chart+"/ci/all-values.yaml")
	pod := all.get(t, "Deployment", "cloakroom").at("spec.template.metadata.labels").(map[string]any)
	selects := func(name string, selector any, labels map[string]any) {
		t.Helper()
		if m, ok := selector.(map[string]any); !ok || len(m) == 0 {
			t.Errorf("%s: got the selector %v", name, selector)
		} else {
			for k, v := range m {
				if labels[k] != v {
					t.Errorf("%s selects %s=%v, got %v", name, k, v, labels[k])
				}
			}
		}
	}
	selects("Deployment", all.get(t, "Deployment", "cloakroom").at("spec.selector.matchLabels"), pod)
	selects("Service", all.get(t, "Service", "cloakroom").at("spec.selector"), pod)
	selects("admin Service", all.get(t, "Service", "cloakroom-admin").at("spec.selector"), pod)
	selects("PodDisruptionBudget", all.get(t, "PodDisruptionBudget", "cloakroom").at("spec.selector.matchLabels"), pod)
	selects("NetworkPolicy", all.get(t, "NetworkPolicy", "cloakroom").at("spec.podSelector.matchLabels"), pod)
	selects("spread", all.get(t, "Deployment", "cloakroom").
		at("spec.template.spec.topologySpreadConstraints.0.labelSelector.matchLabels"), pod)
	monitor := all.get(t, "ServiceMonitor", "cloakroom")
	selects("ServiceMonitor", monitor.at("spec.selector.matchLabels"),
		all.get(t, "Service", "cloakroom-admin").at("metadata.labels").(map[string]any))
	if component := all.get(t, "Service",
		"cloakroom").at("metadata.labels").(map[string]any)["app.kubernetes.io/component"]; component != nil {
		t.Errorf("the ServiceMonitor also selects the public Service: component %v", component)
	}

	wantValues(t, all.get(t, "Deployment", "cloakroom"), map[string]any{
		"spec.replicas": nil, // the autoscaler sets it
		"spec.template.spec.containers.0.ports.0.containerPort": 8443,
		"spec.template.spec.containers.0.ports.1.containerPort": 9443,
		"spec.template.spec.containers.0.image": "ghcr.io/cloakroom-bff/cloakroom@" +
			"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
		"spec.template.spec.terminationGracePeriodSeconds": 90 + 3 + 20,
	})
	wantValues(t, all.get(t, "Service", "cloakroom"), map[string]any{
		"spec.ports": []any{map[string]any{"name": "https", "port": 443, "targetPort": "http", "appProtocol": "https"}},
	})
	wantValues(t, all.get(t, "Service", "cloakroom-admin"), map[string]any{
		"spec.ports.0.name": "admin", "spec.ports.0.targetPort": "admin", "spec.clusterIP": "None",
	})
	wantValues(t, monitor, map[string]any{
		"spec.endpoints.0.port":                      "admin",
		"spec.endpoints.0.path":                      "/metrics",
		"spec.endpoints.0.authorization.credentials": map[string]any{"name": "cloakroom", "key": "admin-token"},
	})
	wantValues(t, all.get(t, "Ingress", "cloakroom"), map[string]any{
		"spec.rules.0.host":              "app.example.com",
		"spec.rules.0.http.paths.0.path": "/",
		"spec.rules.0.http.paths.0.backend.service": map[string]any{
			"name": "cloakroom", "port": map[string]any{"number": 443}},
		"spec.tls.0": map[string]any{"hosts": []any{"app.example.com"}, "secretName": "app-example-com"},
	})
	wantValues(t, all.get(t, "HTTPRoute", "cloakroom"), map[string]any{
		"metadata.annotations": map[string]any{"example.com/owner": "identity"},
		"spec.parentRefs": []any{map[string]any{
			"name": "public", "namespace": "gateways", "sectionName": "https"}},
		"spec.hostnames": []any{"app.example.com"},
		"spec.rules": []any{map[string]any{
			"matches":     []any{map[string]any{"path": map[string]any{"type": "PathPrefix", "value": "/"}}},
			"backendRefs": []any{map[string]any{"name": "cloakroom", "port": 443}},
			"timeouts":    map[string]any{"request": "0s"},
		}},
	})
	wantValues(t, all.get(t, "HorizontalPodAutoscaler", "cloakroom"), map[string]any{
		"spec.scaleTargetRef.name": "cloakroom", "spec.minReplicas": 3, "spec.maxReplicas": 10,
		"spec.metrics.0.resource.name":                      "cpu",
		"spec.metrics.0.resource.target.averageUtilization": 70,
	})
}

// Whatever else is set, the admin listener is closed to all but the peers that
// networkPolicy.admin names.
func TestNetworkPolicyProtectsTheAdminListener(t *testing.T) {
	t.Parallel()
	policy := render(t, "-f", example).get(t, "NetworkPolicy", "cloakroom")
	namespace := func(name string) []any {
		return []any{map[string]any{"namespaceSelector": map[string]any{
			"matchLabels": map[string]any{"kubernetes.io/metadata.name": name}}}}
	}
	wantValues(t, policy, map[string]any{
		"spec.policyTypes": []any{"Ingress", "Egress"},
		"spec.ingress": []any{
			map[string]any{"ports": []any{map[string]any{"port": "http"}}, "from": namespace("ingress-nginx")},
			map[string]any{"ports": []any{map[string]any{"port": "admin"}}, "from": namespace("monitoring")},
		},
		"spec.egress.0": map[string]any{"ports": []any{
			map[string]any{"port": 53, "protocol": "UDP"}, map[string]any{"port": 53, "protocol": "TCP"}}},
		"spec.egress.1.ports.0.port": 6379,
		"spec.egress.3.to.0.ipBlock": map[string]any{"cidr": "0.0.0.0/0"},
	})
	policy = render(t, "-f", example, "--set-json", `networkPolicy={"ingress": [], "admin": [], "egress": []}`).
		get(t, "NetworkPolicy", "cloakroom")
	wantValues(t, policy, map[string]any{
		"spec.policyTypes": []any{"Ingress"},
		"spec.ingress":     []any{map[string]any{"ports": []any{map[string]any{"port": "http"}}}},
		"spec.egress":      nil,
	})
	policy = render(t, "-f", chart+"/ci/all-values.yaml").get(t, "NetworkPolicy", "cloakroom")
	wantValues(t, policy, map[string]any{"spec.egress.0.to": namespace("kube-system")})
}

func TestFileStoreIsForOneProcess(t *testing.T) {
	t.Parallel()
	wantValues(t, render(t, "-f", chart+"/ci/file-values.yaml").get(t, "Deployment", "cloakroom"), map[string]any{
		"spec.strategy": map[string]any{"type": "Recreate"}, "spec.replicas": 1,
	})
}

// A release is named after its app. Its objects tell what they are.
func TestNamesOfOtherReleases(t *testing.T) {
	for release, want := range map[string]string{
		"shop":                  "shop-cloakroom",
		"cloakroom-shop":        "cloakroom-shop",
		strings.Repeat("a", 53): strings.Repeat("a", 47) + "-cloakroom",
		// The name of a Service begins with a letter, and has no dot.
		"shop.v2":                              "shop-v2-cloakroom",
		"2024":                                 "cloakroom-2024",
		"1" + strings.Repeat("b", 45) + "---c": "cloakroom-1" + strings.Repeat("b", 45),
		"true":                                 "true-cloakroom",
	} {
		text, err := command(tool(t, "bin/helm"), "template", release, chart, "-f", example)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range parse(t, text) {
			if got := o.at("metadata.name"); got != want {
				t.Errorf("release %s: got the %s %v, want %s", release, o["kind"], got, want)
			}
		}
		if err := validate(t, "schemas", text); err != nil {
			t.Errorf("release %s: %v", release, err)
		}
	}
}

// Names that YAML reads as numbers or booleans stay names.
func TestNamesStayText(t *testing.T) {
	text, err := template(t, "-f", chart+"/ci/all-values.yaml", "--set-string", "secret=123,ingress.className=on,"+
		"ingress.tlsSecret=1e3,priorityClassName=true,nodeSelector.pool=1,podLabels.version=1.0")
	if err != nil {
		t.Fatal(err)
	}
	if err := validate(t, "schemas", text); err != nil {
		t.Error(err)
	}
}

// Ingress and HTTPRoute take host names in lower case only. Without a host they
// match all, which is what an origin with an IP address needs.
func TestHostsOfIngressAndRoute(t *testing.T) {
	for url, want := range map[string]string{
		"https://App.Example.com": "app.example.com", "https://localhost": "localhost",
		"https://xn--bcher-kva.example:8443/shop": "xn--bcher-kva.example",
		"https://[2001:db8::1]:8443":              "", "https://192.0.2.1": "",
	} {
		text, err := template(t, "-f", chart+"/ci/all-values.yaml", "--set", "config.server.public_url="+url)
		if err != nil {
			t.Fatal(err)
		}
		if err := validate(t, "schemas", text); err != nil {
			t.Errorf("%s: %v", url, err)
		}
		var name any = want
		names := any([]any{want})
		if want == "" {
			name, names = nil, nil
		}
		all := parse(t, text)
		wantValues(t, all.get(t, "Ingress", "cloakroom"), map[string]any{
			"spec.rules.0.host": name, "spec.tls.0.hosts": names,
		})
		wantValues(t, all.get(t, "HTTPRoute", "cloakroom"), map[string]any{"spec.hostnames": names})
	}
}

// What a variable sets need not be in config.
func TestKeysInTheEnvironmentAreNotMissing(t *testing.T) {
	t.Parallel()
	render(t, "--set-json", `config={"server": {"public_url": "https://app.example.com"}}`, "--set-json", `extraEnv=[
		{"name": "CLOAKROOM_OIDC_ISSUER", "value": "https://id.example.com"},
		{"name": "CLOAKROOM_OIDC_CLIENT_ID", "value": "spa"},
		{"name": "CLOAKROOM_STORE_URL", "valueFrom": {"secretKeyRef": {"name": "redis", "key": "url"}}}]`)
}

// On a node with IPv6 only, a pod has no address of IPv4.
func TestChartListensOnIPv4AndIPv6(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"listen", "admin_listen"} {
		var settings object
		text := render(t, "-f", example).get(t, "ConfigMap", "cloakroom").at("data").(map[string]any)["cloakroom.yaml"]
		if err := yaml.Load([]byte(text.(string)), (*map[string]any)(&settings)); err != nil {
			t.Fatal(err)
		}
		if host, _, err := net.SplitHostPort(settings.at("server." + name).(string)); err != nil || host != "" {
			t.Errorf("server.%s: got the host %q (%v), want none", name, host, err)
		}
	}
}

func TestChartNamesMistakesInValues(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ set, want string }{
		{"replica=3", "replica"},
		{"replicas=two", "/replicas"},
		{"image.sha=1", "sha"},
		{"image.digest=sha256:1", "/image/digest"},
		{"config.server.listen=8080", "/config/server/listen"},
		{"config.server.admin_listen=localhost", "/config/server/admin_listen"},
		{"config.server.shutdown_delay=5", "/config/server/shutdown_delay"},
		{"config.server.shutdown_grace=5 minutes", "/config/server/shutdown_grace"},
		{"config.oidc.isuer=https://id.example.com", "isuer"},
		{"config.session.idle_timeout=30", "/config/session/idle_timeout"},
		{"config.routes[0].token=users", "/config/routes/0/token"},
		{"config.server.admin_token=x", "config.server.admin_token is a secret"},
		{"config.oidc.client_secret=x", "use config.oidc.client_secret_file"},
		{"config.oidc.client_key=x", "config.oidc.client_key is a secret"},
		{"config.session.keys={x}", "config.session.keys is a secret"},
		{"config.store.url=redis://:secret@redis:6379/0", "config.store.url has a password"},
		{"config.store.url=redis://user:secret@redis:6379/0", "config.store.url has a password"},
		{"service.type=Loadbalancer", "/service/type"},
		{"secret=", "/secret"},
		{"serviceMonitor.interval=often", "/serviceMonitor/interval"},
		{"httpRoute.parentRefs[0].nmae=public", "nmae"},
		{"httpRoute.enabled=true", "httpRoute.parentRefs is required"},
		{"networkPolicy.ingres[0].podSelector.a=b", "ingres"},
		{"config.server.public_url=", "config.server.public_url is required"},
		{"config.oidc.issuer=", "config.oidc.issuer is required"},
		{"config.oidc.client_id=", "config.oidc.client_id is required"},
		{"config.store.url=", `replicas is 2, but config.store.url "memory:" is for one replica`},
		{"config.store.url=file:/data", `replicas is 2, but config.store.url "file:/data" is for one replica`},
		{"config.store.url=memory:,replicas=1,autoscaling.enabled=true", "autoscaling.maxReplicas is 10, but"},
		{"autoscaling.enabled=true,autoscaling.minReplicas=11", "autoscaling.minReplicas is 11, but"},
		{"autoscaling.enabled=true,resources=null", "resources.requests.cpu is required"},
		{"config.oidc=null", "config.oidc.issuer is required"},
		{"config.server.listen=127.0.0.1:8080", `only the pod itself reaches; use ":8080"`},
		{"config.server.admin_listen=Localhost:9090", `only the pod itself reaches; use ":9090"`},
		{"config.server.public_url=https://bücher.example", `has the host "bücher.example"`},
		{"extraEnv[0].name=CLOAKROOM_SERVER_LISTEN", "use config.server.listen"},
		{"extraEnv[0].name=CLOAKROOM_SERVER_TLS_KEY_FILE", "use config.server.tls.key_file"},
		{"ingress=null", "'ingress'"},
		{"service=null", "'service'"},
	} {
		switch _, err := template(t, "-f", example, "--set", test.set); {
		case err == nil:
			t.Errorf("%s: got no error, want %q in it", test.set, test.want)
		case !strings.Contains(err.Error(), test.want):
			t.Errorf("%s: got %v, want %q in it", test.set, err, test.want)
		}
	}
	_, err := template(t)
	for _, key := range []string{"config.server.public_url", "config.oidc.issuer", "config.oidc.client_id"} {
		if err == nil || !strings.Contains(err.Error(), "\n- "+key+" is required") {
			t.Errorf("without values: got %v, want a line about %s", err, key)
		}
	}
}

// Every value has a default that the schema accepts, and the schema describes
// every value.
func TestSchemaDescribesEveryValue(t *testing.T) {
	t.Parallel()
	var values, schema object
	for name, v := range map[string]*object{"values.yaml": &values, "values.schema.json": &schema} {
		text, err := os.ReadFile(filepath.Join(chart, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.Load(text, (*map[string]any)(v)); err != nil {
			t.Fatal(err)
		}
	}
	properties := object(schema["properties"].(map[string]any))
	for name := range properties {
		if _, ok := values[name]; !ok && name != "global" {
			t.Errorf("values.yaml has no %s", name)
		}
	}
	for name, value := range values {
		described, ok := properties[name].(map[string]any)
		if !ok {
			t.Errorf("values.schema.json has no %s", name)
			continue
		}
		section, ok := value.(map[string]any)
		if !ok || described["additionalProperties"] != false {
			continue
		}
		for key := range section {
			if object(described).at("properties."+key) == nil {
				t.Errorf("values.schema.json has no %s.%s", name, key)
			}
		}
	}
}

func TestNotesNameTheNextSteps(t *testing.T) {
	t.Parallel()
	notes := func(args ...string) string {
		t.Helper()
		text, err := command(tool(t, "bin/helm"), append([]string{"install", "shop", chart, "--dry-run=client",
			"--namespace", "web", "-f", example}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return text[strings.Index(text, "\nNOTES:"):]
	}
	text := notes()
	for _, want := range []string{
		"kubectl -n web create secret generic cloakroom",
		"--from-literal=session-keys=", "--from-literal=admin-token=", "--from-file=client-secret",
		"--from-file=redis-password",
		"https://app.example.com/bff/callback", "https://app.example.com/bff/logout/callback",
		"kubectl -n web rollout status deployment/shop-cloakroom",
		"exec deployment/shop-cloakroom -- /cloakroom health --config /etc/cloakroom/cloakroom.yaml",
		"exec deployment/shop-cloakroom -- /cloakroom reload --config /etc/cloakroom/cloakroom.yaml",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("got no %q in\n%s", want, text)
		}
	}
	if strings.Contains(text, "WARNING") {
		t.Errorf("got a warning, want none:\n%s", text)
	}
	for set, want := range map[string]string{
		"config.server.trusted_proxies=null": "config.server.trusted_proxies is empty",
		"config.server.trusted_proxies=null,ingress.enabled=false,httpRoute.enabled=true," +
			"httpRoute.parentRefs[0].name=public": "the gateway",
		"config.server.public_url=http://localhost:8080":       "config.server.public_url is http://localhost:8080",
		"serviceMonitor.enabled=true,networkPolicy.admin=null": "networkPolicy.admin is empty",
		"replicas=1,config.store.url=memory:":                  "Each restart signs all users out",
		"replicas=1,config.store.url=file:/data":               "Mount a persistent volume",
	} {
		if text := notes("--set", set); !strings.Contains(text, "WARNING: ") || !strings.Contains(text, want) {
			t.Errorf("%s: got no warning %q in\n%s", set, want, text)
		}
	}
}

func TestManifestsAreRenderedFromTheChart(t *testing.T) {
	t.Parallel()
	text, err := template(t, "-f", example)
	if err != nil {
		t.Fatal(err)
	}
	want := make(map[string]string)
	for document := range strings.SplitSeq(text, "\n---\n") {
		document = strings.TrimPrefix(document, "---\n")
		source, body, _ := strings.Cut(document, "\n")
		name := filepath.Base(source)
		want[name] = withoutHelm(body)
	}
	if *update {
		if err := os.RemoveAll(manifests); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(manifests, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range want {
			if err := os.WriteFile(filepath.Join(manifests, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	entries, err := os.ReadDir(manifests)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		text, err := os.ReadFile(filepath.Join(manifests, entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if string(text) != want[entry.Name()] {
			t.Errorf("%s is not what the chart renders; run make manifests", entry.Name())
		}
		delete(want, entry.Name())
	}
	for name := range want {
		t.Errorf("%s is missing; run make manifests", name)
	}
}

// withoutHelm removes the labels by which Helm knows its objects.
func withoutHelm(text string) string {
	var lines []string
	for line := range strings.Lines(text) {
		if !strings.Contains(line, "helm.sh/chart:") && !strings.Contains(line, "app.kubernetes.io/managed-by:") {
			lines = append(lines, line)
		}
	}
	return strings.TrimSpace(strings.Join(lines, "")) + "\n"
}
