{{- define "trackless.corefile" -}}
{{- if .Values.corefile }}
{{- .Values.corefile }}
{{- else }}
{{- if .Values.external.servers }}
{{- include "trackless.block" (dict "root" . "zones" (printf "%s:53 in-addr.arpa:53 ip6.arpa:53" .Values.external.domain) "kubeDNS" true) }}
{{- include "trackless.block" (dict "root" . "zones" ".:53") }}
{{- else }}
{{- include "trackless.block" (dict "root" . "zones" ".:53" "kubeDNS" true) }}
{{- end }}
{{- with .Values.extraServerBlocks }}
{{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "trackless.listen" -}}
{{- $listen := list }}
{{- if and (has .Values.mode (list "link-local" "both")) (not .Values.linkLocal) }}
{{- fail (printf "linkLocal is empty, and mode is %s: give the addresses, such as 169.254.20.10" .Values.mode) }}
{{- end }}
{{- if has .Values.mode (list "link-local" "both") }}{{ $listen = concat $listen .Values.linkLocal }}{{ end }}
{{- if has .Values.mode (list "cluster-ip" "both") }}{{ $listen = append $listen (include "trackless.kubeDNS" .) }}{{ end }}
{{- join " " $listen }}
{{- end }}

{{- /* One server block: its zones, and whether kube-dns is asked for them. */}}
{{- define "trackless.block" -}}
{{- $v := .root.Values }}
{{ .zones }} {
    errors {
        consolidate 10s "timeout" error show_first
        consolidate 10s "refused" error show_first
        consolidate 10s "." error show_first
    }
{{- if ne $v.mode "cilium" }}
    bind {{ include "trackless.listen" .root }}
    {{- include "trackless.notrack" .root | nindent 4 }}
{{- end }}
    reload
    loop
{{- if and .kubeDNS $v.searchPath.onePass }}
    searchpath {{ join " " (prepend $v.searchPath.domains $v.external.domain) }}
{{- end }}
{{- if and $v.fastPath.enabled (ne $v.mode "cilium") }}
    fastpath {
        kernel on
    }
{{- end }}
    cache {
{{- with $v.cache.size }}
        size {{ . }}
{{- end }}
        success {{ int $v.cache.success.capacity }} {{ int $v.cache.success.ttl }}
        denial {{ int $v.cache.denial.capacity }} {{ int $v.cache.denial.ttl }}
{{- if and .kubeDNS $v.searchPath.learn }}
        nxdomain learn {{ $v.external.domain }}
{{- end }}
{{- if $v.cache.prefetch }}
        prefetch 10 1m 20%
{{- end }}
{{- with $v.cache.serveStale }}
        serve_stale {{ . }} verify 1s 30s 30s
{{- end }}
{{- if and $v.cache.serveStale $v.cache.preferPositive }}
        serve_stale_policy prefer_positive
{{- end }}
    }
    {{ include "trackless.target" . }} {
{{- if and .kubeDNS $v.upstream.forceTCP }}
        force_tcp
{{- end }}
        max_concurrent {{ int $v.upstream.maxConcurrent }}
{{- if and (not .kubeDNS) (include "trackless.tlsServers" .root) }}
        {{- include "trackless.forwardTLS" .root }}
{{- end }}
    }
{{- if $v.metrics.tls.secret }}
    prometheus :{{ int $v.metrics.port }} {
        tls /etc/coredns/metrics.yaml
    }
{{- else }}
    prometheus :{{ int $v.metrics.port }}
{{- end }}
{{- if and .kubeDNS $v.metrics.byPod (ne $v.mode "cilium") }}
    podmetrics {{ int $v.metrics.byPod }}
{{- end }}
{{- with $v.extraPlugins }}
    {{- . | trim | nindent 4 }}
{{- end }}
}
{{ end }}

{{- /* The directive by which misses leave. */}}
{{- define "trackless.target" -}}
{{- $u := .root.Values.upstream }}
{{- if not .kubeDNS }}forward . {{ join " " .root.Values.external.servers }}
{{- else if $u.addresses }}forward . {{ join " " $u.addresses }}
{{- else if $u.endpoints }}upstream endpoints {{ .root.Values.kubeDNS.namespace }}/{{ .root.Values.kubeDNS.service }}
{{- else }}upstream service {{ .root.Values.kubeDNS.namespace }}/{{ $u.name }}
{{- end }}
{{- end }}

{{- define "trackless.notrack" -}}
{{- $n := .Values.notrack }}
{{- if and (eq $n.backend "iptables") (not (has $n.lease (list "1s" "1.0s" "1000ms"))) (not $n.dryRun) }}
{{- fail (printf "notrack.lease is %s, and with notrack.backend iptables it can be 1s only: xt_recent counts whole seconds" $n.lease) }}
{{- end }}
{{- $failover := $n.failover }}
{{- if and $failover (has .Values.mode (list "cluster-ip" "both")) (has $failover .Values.kubeDNS.addresses) }}
{{- fail (printf "notrack.failover is %s, which is in kubeDNS.addresses and listened on in mode %s: kube-proxy serves it while nobody listens, so leave the value empty, or name another address for link-local ones" $failover .Values.mode) }}
{{- end }}
{{- /* kube-dns itself: it stays when the chart is uninstalled. */}}
{{- if and (not $failover) (eq .Values.mode "link-local") (or .Values.kubeDNS.addresses (eq (include "trackless.namespace" .) .Values.kubeDNS.namespace)) }}
{{- $failover = first .Values.kubeDNS.addresses | default (include "trackless.serviceHost" .Values.kubeDNS.service) }}
{{- end -}}
notrack {
    backend {{ $n.backend }}
    lease {{ $n.lease }}
    sync {{ $n.sync }}
{{- with $failover }}
    failover {{ . }}
{{- end }}
{{- with $n.sources }}
    sources {{ join " " . }}
{{- end }}
{{- with $n.uplinks }}
    uplinks {{ join " " . }}
{{- end }}
{{- if $n.keepNames }}
    warm 2s names /var/lib/trackless/names
{{- end }}
{{- if $n.dryRun }}
    dry-run
{{- end }}
}
{{- end }}
