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

{{- define "trackless.kubeDNS" -}}
{{- $v := .Values.kubeDNS }}
{{- if and (ne .Release.Namespace $v.namespace) (not $v.addresses) }}
{{- fail (printf "kubeDNS.addresses is empty, and the address of the Service %s comes from the environment of pods in namespace %s only: install into that namespace (now it is %s), or set kubeDNS.addresses" $v.service $v.namespace .Release.Namespace) }}
{{- end }}
{{- if $v.addresses }}{{ join " " $v.addresses }}{{ else }}{{ include "trackless.serviceHost" $v.service }}{{ end }}
{{- end }}

{{- /* Whether anything is asked of the API server. */}}
{{- define "trackless.asksAPI" -}}
{{- if not (or .Values.upstream.addresses .Values.corefile) }}true{{ end }}
{{- end }}

{{- /* Fails where a kind of the Prometheus Operator is asked for that the cluster does not know. */}}
{{- define "trackless.needsOperator" -}}
{{- if not (.root.Capabilities.APIVersions.Has (printf "monitoring.coreos.com/v1/%s" .kind)) }}
{{- fail (printf "%s.enabled is true, and the cluster knows no %s: install the Prometheus Operator with its CRDs first, or set it to false; `helm template` has no cluster to ask, so give it --api-versions monitoring.coreos.com/v1/%s" .value .kind .kind) }}
{{- end }}
{{- end }}

{{/* Not empty where the xtables lock of the node is mounted. */}}
{{- define "trackless.xtablesLock" -}}
{{- if or .Values.notrack.xtablesLock (eq .Values.notrack.backend "iptables") (contains "iptables" (print .Values.image.tag .Values.image.repository)) -}}
true
{{- end -}}
{{- end -}}
