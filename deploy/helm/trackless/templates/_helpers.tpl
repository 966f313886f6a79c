{{- define "trackless.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- /* The name of the objects. */}}
{{- define "trackless.fullname" -}}
{{- $name := .Values.nameOverride | default .Chart.Name }}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "trackless.namespace" -}}
{{- .Values.namespaceOverride | default .Release.Namespace }}
{{- end }}

{{- define "trackless.selector" -}}
app.kubernetes.io/name: {{ include "trackless.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* Labels of everything but what the selectors select. */}}
{{- define "trackless.otherLabels" -}}
app.kubernetes.io/part-of: trackless
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "trackless.labels" -}}
{{ include "trackless.selector" . }}
{{ include "trackless.otherLabels" . }}
{{- end }}

{{- /* Labels of the user (.labels, and the common ones) that are not ours, each on a line. */}}
{{- define "trackless.userLabels" -}}
{{- $ours := include "trackless.labels" .root | fromYaml }}
{{- range $key, $value := mergeOverwrite (deepCopy (.root.Values.commonLabels | default dict)) (.labels | default dict) }}
{{- if not (hasKey $ours $key) }}
{{ toYaml (dict $key $value) }}
{{- end }}
{{- end }}
{{- end }}

{{- /*
The metadata of an object.
  root         the context of the chart
  name         if it is not that of the release
  namespace    if it is not that of the release
  labels       further ones
  annotations  further ones
The chart's labels win over those of the user, and those of one object over the
common ones.
*/}}
{{- define "trackless.metadata" -}}
name: {{ .name | default (include "trackless.fullname" .root) }}
{{- if not .clusterScoped }}
namespace: {{ .namespace | default (include "trackless.namespace" .root) }}
{{- end }}
labels:
  {{- include "trackless.labels" .root | nindent 2 }}
  {{- with include "trackless.userLabels" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
{{- with mergeOverwrite (deepCopy (.root.Values.commonAnnotations | default dict)) (.annotations | default dict) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "trackless.image" -}}
{{- $tag := .Values.image.tag | default .Chart.AppVersion }}
{{- .Values.image.repository }}:{{ $tag }}{{ with .Values.image.digest }}@{{ . }}{{ end }}
{{- end }}

{{- define "trackless.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "trackless.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- /* The variable in which Kubernetes gives pods the address of a Service of their namespace. */}}
{{- define "trackless.serviceHostName" -}}
{{ . | upper | replace "-" "_" }}_SERVICE_HOST
{{- end }}

{{- /* It, as a Corefile writes it. */}}
{{- define "trackless.serviceHost" -}}
{${{ include "trackless.serviceHostName" . }}}
{{- end }}

{{- /* The environment has the address of kube-dns only in its own namespace. */}}
{{- define "trackless.needsKubeDNS" -}}
{{- $v := .Values.kubeDNS }}
{{- $namespace := include "trackless.namespace" . }}
{{- if and (ne $namespace $v.namespace) (not $v.addresses) }}
{{- fail (printf "kubeDNS.addresses is empty, and the address of the Service %s comes from the environment of pods in namespace %s only: install into that namespace (now it is %s), or set kubeDNS.addresses" $v.service $v.namespace $namespace) }}
{{- end }}
{{- end }}

{{- define "trackless.kubeDNS" -}}
{{- $v := .Values.kubeDNS }}
{{- include "trackless.needsKubeDNS" . }}
{{- if $v.addresses }}{{ join " " $v.addresses }}{{ else }}{{ include "trackless.serviceHost" $v.service }}{{ end }}
{{- end }}

{{- /* Whether anything is asked of the API server. */}}
{{- define "trackless.asksAPI" -}}
{{- if not (or .Values.upstream.addresses .Values.corefile) }}true{{ end }}
{{- end }}

{{- /* Not empty where the pods get a token for the API server. */}}
{{- define "trackless.mountsToken" -}}
{{- if or (include "trackless.asksAPI" .) .Values.names.fromAPI }}true{{ end }}
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
