{{- define "cloakroom.name" -}}
{{- if contains "cloakroom" .Release.Name -}}
{{- .Release.Name | trunc 57 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-cloakroom" (.Release.Name | trunc 47 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{- define "cloakroom.selector" -}}
app.kubernetes.io/name: cloakroom
app.kubernetes.io/instance: {{ .Release.Name }}
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
{{- if not $oidc.issuer -}}
{{- $mistakes = append $mistakes "config.oidc.issuer is required, such as https://id.example.com/realms/main" -}}
{{- end -}}
{{- if not $oidc.client_id -}}
{{- $mistakes = append $mistakes "config.oidc.client_id is required" -}}
{{- end -}}
{{- range list "server.admin_token" "oidc.client_secret" "oidc.client_key" "session.keys" -}}
{{- if dig (splitList "." . | first) (splitList "." . | last) "" $.Values.config -}}
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
{{- if not (or $store.url_file (regexMatch "^(redis|unix)" ($store.url | default ""))) -}}
true
{{- end -}}
{{- end -}}
