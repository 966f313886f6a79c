{{- define "trackless.selector" -}}
app.kubernetes.io/name: trackless
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "trackless.labels" -}}
{{ include "trackless.selector" . }}
app.kubernetes.io/part-of: trackless
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "trackless.name" -}}
{{- if contains "trackless" .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-trackless{{ end }}
{{- end }}

{{- define "trackless.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "trackless.name" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- /* The variable in which Kubernetes gives pods the address of a Service of their namespace. */}}
{{- define "trackless.serviceHost" -}}
{$ {{- . | upper | replace "-" "_" }}_SERVICE_HOST}
{{- end }}

{{- /* Outside of its namespace the Service's address has to be given. */}}
{{- define "trackless.checkNamespace" -}}
{{- if and (ne .root.Release.Namespace .root.Values.kubeDNS.namespace) (not .addresses) (not .root.Values.corefile) }}
{{- fail (printf "%s is empty, and the address of the Service %s comes from the environment of pods in namespace %s only: install into that namespace (now it is %s), or set %s" .value .service .root.Values.kubeDNS.namespace .root.Release.Namespace .value) }}
{{- end }}
{{- end }}

{{- define "trackless.kubeDNS" -}}
{{- include "trackless.checkNamespace" (dict "root" . "addresses" .Values.kubeDNS.addresses "value" "kubeDNS.addresses" "service" .Values.kubeDNS.service) }}
{{- if .Values.kubeDNS.addresses }}{{ join " " .Values.kubeDNS.addresses }}{{ else }}{{ include "trackless.serviceHost" .Values.kubeDNS.service }}{{ end }}
{{- end }}

{{- define "trackless.upstream" -}}
{{- include "trackless.checkNamespace" (dict "root" . "addresses" .Values.upstream.addresses "value" "upstream.addresses" "service" .Values.upstream.name) }}
{{- if .Values.upstream.addresses }}{{ join " " .Values.upstream.addresses }}{{ else }}{{ include "trackless.serviceHost" .Values.upstream.name }}{{ end }}
{{- end }}
