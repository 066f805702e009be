{{/* The name of a Service has no dots, begins with a letter and has at most 63 characters. */}}
{{- define "cloakroom.name" -}}
{{- $name := .Release.Name | replace "." "-" -}}
{{- if regexMatch "^[0-9]" $name -}}
{{- $name = printf "cloakroom-%s" $name -}}
{{- end -}}
{{- if contains "cloakroom" $name -}}
{{- regexReplaceAll "-+$" ($name | trunc 57) "" -}}
{{- else -}}
{{- printf "%s-cloakroom" (regexReplaceAll "-+$" ($name | trunc 47) "") -}}
{{- end -}}
{{- end -}}

{{- define "cloakroom.selector" -}}
app.kubernetes.io/name: cloakroom
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "cloakroom.labels" -}}
{{ include "cloakroom.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") }}
{{- end -}}

{{/* The port of an address such as 0.0.0.0:8080. */}}
{{- define "cloakroom.port" -}}
{{- regexFind "[0-9]+$" . -}}
{{- end -}}

{{/*
The host of config.server.public_url as an Ingress and an HTTPRoute have it: in lower case. Empty
for an IP address, which they do not take. Without a host they match all.
*/}}
{{- define "cloakroom.host" -}}
{{- $host := (urlParse (.Values.config.server.public_url | default "")).hostname | lower -}}
{{- if not (regexMatch ":|(^|\\.)[0-9]+$" $host) -}}
{{- $host -}}
{{- end -}}
{{- end -}}

{{/*
Not empty if extraEnv sets a variable of the configuration or its twin for a file. The arguments
are the root and the name.
*/}}
{{- define "cloakroom.env" -}}
{{- $name := index . 1 -}}
{{- range (index . 0).Values.extraEnv -}}
{{- if has .name (list $name (printf "%s_FILE" $name)) -}}
true
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A duration in Go's syntax, such as 1m30s, in seconds, rounded up. */}}
{{- define "cloakroom.seconds" -}}
{{- $units := dict "h" 3600.0 "m" 60.0 "s" 1.0 "ms" 1e-3 "us" 1e-6 "µs" 1e-6 "ns" 1e-9 -}}
{{- $sum := 0.0 -}}
{{- range regexFindAll "[0-9.]+(h|ms|m|s|us|µs|ns)" . -1 -}}
{{- $sum = addf $sum (mulf (regexFind "^[0-9.]+" . | float64) (get $units (regexFind "[a-zµ]+$" .))) -}}
{{- end -}}
{{- ceil $sum -}}
{{- end -}}

{{/* Checks what the schema cannot check. All mistakes are reported at once. */}}
{{- define "cloakroom.check" -}}
{{- $server := .Values.config.server -}}
{{- $oidc := .Values.config.oidc | default dict -}}
{{- $url := (.Values.config.store | default dict).url | default "" -}}
{{- $mistakes := list -}}
{{- if not $server.public_url -}}
{{- $mistakes = append $mistakes "config.server.public_url is required, such as https://app.example.com" -}}
{{- end -}}
{{- if not (or $oidc.issuer (include "cloakroom.env" (list . "CLOAKROOM_OIDC_ISSUER"))) -}}
{{- $mistakes = append $mistakes "config.oidc.issuer is required, such as https://id.example.com/realms/main" -}}
{{- end -}}
{{- if not (or $oidc.client_id (include "cloakroom.env" (list . "CLOAKROOM_OIDC_CLIENT_ID"))) -}}
{{- $mistakes = append $mistakes "config.oidc.client_id is required" -}}
{{- end -}}
{{- range list "listen" "admin_listen" "public_url" "tls_cert_file" "tls_key_file" "shutdown_delay" "shutdown_grace" -}}
{{- $variable := printf "CLOAKROOM_SERVER_%s" (upper .) -}}
{{- if include "cloakroom.env" (list $ $variable) -}}
{{- $mistakes = append $mistakes (printf "extraEnv has %s, which the other objects of the chart depend on; use config.server.%s" $variable (. | replace "tls_" "tls.")) -}}
{{- end -}}
{{- end -}}
{{- range list "listen" "admin_listen" -}}
{{- if regexMatch "^(127\\.|localhost:|\\[::1\\])" (get $server . | lower) -}}
{{- $mistakes = append $mistakes (printf "config.server.%s is %q, which only the pod itself reaches; use %q" . (get $server .) (printf ":%s" (include "cloakroom.port" (get $server .)))) -}}
{{- end -}}
{{- end -}}
{{- $host := include "cloakroom.host" . -}}
{{- if and (or .Values.ingress.enabled .Values.httpRoute.enabled) $host (not (regexMatch "^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$" $host)) -}}
{{- $mistakes = append $mistakes (printf "config.server.public_url has the host %q, which Kubernetes does not take; write a name with other letters as xn--…" $host) -}}
{{- end -}}
{{- range list "server.admin_token" "oidc.client_secret" "oidc.client_key" "session.keys" -}}
{{- if get (get $.Values.config (splitList "." . | first) | default dict) (splitList "." . | last) -}}
{{- $mistakes = append $mistakes (printf "config.%s is a secret, but a ConfigMap is not; use config.%s_file with a file in /run/secrets/cloakroom" . .) -}}
{{- end -}}
{{- end -}}
{{- if regexMatch "://[^/@]*:[^/@]+@" $url -}}
{{- $mistakes = append $mistakes "config.store.url has a password, but a ConfigMap is not secret; use config.store.password_file, or config.store.url_file" -}}
{{- end -}}
{{- $replicas := ternary .Values.autoscaling.maxReplicas .Values.replicas .Values.autoscaling.enabled | int -}}
{{- if and (gt $replicas 1) (include "cloakroom.oneReplica" .) -}}
{{- $key := ternary "autoscaling.maxReplicas" "replicas" .Values.autoscaling.enabled -}}
{{- $mistakes = append $mistakes (printf "%s is %d, but config.store.url %q is for one replica; use Redis" $key $replicas ($url | default "memory:")) -}}
{{- end -}}
{{- if .Values.autoscaling.enabled -}}
{{- if gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas) -}}
{{- $mistakes = append $mistakes (printf "autoscaling.minReplicas is %d, but autoscaling.maxReplicas is %d" (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- end -}}
{{- if not (dig "requests" "cpu" "" (.Values.resources | default dict)) -}}
{{- $mistakes = append $mistakes "resources.requests.cpu is required if autoscaling.enabled, which compares the use of CPU with it" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) -}}
{{- $mistakes = append $mistakes "httpRoute.parentRefs is required if httpRoute.enabled, such as [{name: public, namespace: gateways}]" -}}
{{- end -}}
{{- if $mistakes -}}
{{- fail (printf "\n- %s\n" (join "\n- " $mistakes)) -}}
{{- end -}}
{{- end -}}

{{/* Not empty if the store is for one replica. */}}
{{- define "cloakroom.oneReplica" -}}
{{- $store := .Values.config.store | default dict -}}
{{- if not (or $store.url_file (include "cloakroom.env" (list . "CLOAKROOM_STORE_URL")) (regexMatch "^(redis|unix)" ($store.url | default ""))) -}}
true
{{- end -}}
{{- end -}}
