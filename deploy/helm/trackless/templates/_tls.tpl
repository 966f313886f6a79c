{{- /* Where certificates are mounted. */}}
{{- define "trackless.upstreamTLS" -}}/etc/trackless/upstream-tls{{- end }}
{{- define "trackless.upstreamCA" -}}
{{- if .Values.external.tls.ca.hostPath }}/etc/trackless/upstream-ca.crt{{ else }}{{ include "trackless.upstreamTLS" . }}/ca.crt{{ end }}
{{- end }}
{{- define "trackless.metricsTLS" -}}/etc/trackless/metrics-tls{{- end }}

{{- /* The servers outside that are asked over TLS. */}}
{{- define "trackless.tlsServers" -}}
{{- $tls := list }}
{{- range .Values.external.servers }}
{{- if regexMatch "^(tls|https|quic)://" . }}{{ $tls = append $tls . }}{{ end }}
{{- end }}
{{- join " " $tls }}
{{- end }}

{{- /* Which of several sources of authorities are given, for a message. */}}
{{- define "trackless.given" -}}
{{- $prefix := .prefix }}
{{- $given := list }}
{{- range $kind := list "secret" "configMap" "hostPath" }}
{{- with get $.ca $kind }}{{ $given = append $given (printf "%s.%s" $prefix $kind) }}{{ end }}
{{- end }}
{{- if gt (len $given) 1 }}
{{- fail (printf "%s are set, and authorities come from one of them only: leave one, and put all certificates into it" (join " and " $given)) }}
{{- end }}
{{- join "" $given }}
{{- end }}

{{- /* Refuses what forward would refuse or could not verify, and says which value it is. */}}
{{- define "trackless.checkTLS" -}}
{{- $tls := .Values.external.tls }}
{{- $ca := include "trackless.given" (dict "prefix" "external.tls.ca" "ca" $tls.ca) }}
{{- $servers := include "trackless.tlsServers" . }}
{{- if not .Values.corefile }}
{{- if and $servers (not $ca) (not .Values.extraVolumeMounts) }}
{{- fail (printf "external.servers has %s, and no authority is trusted that could have signed its certificate: set external.tls.ca.secret, .configMap or .hostPath (such as /etc/ssl/certs/ca-certificates.crt)" (splitList " " $servers | first)) }}
{{- end }}
{{- if and (not $servers) (or $ca $tls.serverName $tls.clientSecret) }}
{{- fail "external.tls is set, and no server in external.servers is asked over TLS: write them as tls://ADDRESS or https://ADDRESS" }}
{{- end }}
{{- range .Values.external.servers }}
{{- if regexMatch "^https://[^/]*/" . }}
{{- fail (printf "external.servers has %s: leave out the path, which is always /dns-query" .) }}
{{- else if and (hasPrefix "https://" .) (contains "%" .) }}
{{- fail (printf "external.servers has %s: with https:// the name in the certificate goes into external.tls.serverName" .) }}
{{- else if and (regexMatch "^(tls|quic)://.*%" .) $tls.serverName }}
{{- fail (printf "external.servers has %s, and external.tls.serverName is %s: give the name in one of the two" . $tls.serverName) }}
{{- end }}
{{- end }}
{{- end }}
{{- $clients := include "trackless.given" (dict "prefix" "metrics.tls.clientCA" "ca" .Values.metrics.tls.clientCA) }}
{{- if and $clients (not .Values.metrics.tls.secret) }}
{{- fail (printf "%s is set and metrics.tls.secret is not: clients show certificates over TLS only, so name the Secret with the server's certificate" $clients) }}
{{- end }}
{{- end }}

{{- /* Lines of a forward block. */}}
{{- define "trackless.forwardTLS" -}}
{{- $tls := .Values.external.tls }}
{{- $dir := include "trackless.upstreamTLS" . }}
{{- $args := list }}
{{- if $tls.clientSecret }}{{ $args = list (printf "%s/tls.crt" $dir) (printf "%s/tls.key" $dir) }}{{ end }}
{{- if include "trackless.given" (dict "prefix" "external.tls.ca" "ca" $tls.ca) }}{{ $args = append $args (include "trackless.upstreamCA" .) }}{{ end }}
{{- with $args }}
        tls {{ join " " . }}
{{- end }}
{{- with $tls.serverName }}
        tls_servername {{ . }}
{{- end }}
{{- end }}

{{- /* The file that `prometheus { tls }` reads (prometheus/exporter-toolkit, docs/web-configuration.md). */}}
{{- define "trackless.metricsWeb" -}}
{{- $dir := include "trackless.metricsTLS" . -}}
tls_server_config:
  cert_file: {{ $dir }}/tls.crt
  key_file: {{ $dir }}/tls.key
{{- if include "trackless.given" (dict "prefix" "metrics.tls.clientCA" "ca" .Values.metrics.tls.clientCA) }}
  client_ca_file: {{ $dir }}/ca.crt
  client_auth_type: RequireAndVerifyClientCert
{{- end }}
{{- end }}

{{- define "trackless.tlsVolumes" -}}
{{- $e := .Values.external.tls }}
{{- $m := .Values.metrics.tls }}
{{- if or $e.ca.secret $e.ca.configMap $e.clientSecret }}
- name: upstream-tls
  projected:
    defaultMode: 0400
    sources:
      {{- with include "trackless.caSource" $e.ca | trim }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- with $e.clientSecret }}
      - secret:
          name: {{ . }}
          items: [{key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}]
      {{- end }}
{{- end }}
{{- with $e.ca.hostPath }}
- name: upstream-ca
  hostPath:
    path: {{ . }}
    type: File
{{- end }}
{{- if $m.secret }}
- name: metrics-tls
  projected:
    defaultMode: 0400
    sources:
      - secret:
          name: {{ $m.secret }}
          items: [{key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}]
      {{- with include "trackless.caSource" $m.clientCA | trim }}
      {{- . | nindent 6 }}
      {{- end }}
{{- end }}
{{- end }}

{{- define "trackless.caSource" -}}
{{- if .secret }}
- secret:
    name: {{ .secret }}
    items: [{key: {{ .key | quote }}, path: ca.crt}]
{{- else if .configMap }}
- configMap:
    name: {{ .configMap }}
    items: [{key: {{ .key | quote }}, path: ca.crt}]
{{- end }}
{{- end }}

{{- define "trackless.tlsMounts" -}}
{{- $e := .Values.external.tls }}
{{- if or $e.ca.secret $e.ca.configMap $e.clientSecret }}
- name: upstream-tls
  mountPath: {{ include "trackless.upstreamTLS" . }}
  readOnly: true
{{- end }}
{{- if $e.ca.hostPath }}
- name: upstream-ca
  mountPath: {{ include "trackless.upstreamCA" . }}
  readOnly: true
{{- end }}
{{- if .Values.metrics.tls.secret }}
- name: metrics-tls
  mountPath: {{ include "trackless.metricsTLS" . }}
  readOnly: true
{{- end }}
{{- end }}
