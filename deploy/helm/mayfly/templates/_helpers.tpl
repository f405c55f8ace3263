{{- define "mayfly.labels" -}}
{app.kubernetes.io/name: mayfly, app.kubernetes.io/instance: {{ .Release.Name | quote }}}
{{- end }}

{{- define "mayfly.image" -}}
{{ .Values.image.name | default (printf "localhost/mayfly:%s" .Chart.AppVersion) }}
{{- end }}

{{/* Name or address by which nodes reach Mayfly; kubelet fills the variable in. */}}
{{- define "mayfly.address" -}}
{{ .Values.network.address | default "$(NODE_ADDRESS)" }}
{{- end }}

{{/* The port that is in the names of images. */}}
{{- define "mayfly.port" -}}
{{ eq .Values.network.mode "host" | ternary .Values.network.port .Values.network.nodePort }}
{{- end }}

{{/* Combinations that the schema cannot refuse. */}}
{{- define "mayfly.check" -}}
{{- range $what := list "bundle" "data" }}
{{- $volume := index $.Values $what }}
{{- if and $volume.hostPath $volume.claim }}
{{- fail (printf "%s.hostPath and %s.claim: give one of them" $what $what) }}
{{- end }}
{{- if and $volume.hostPath (not $.Values.node) }}
{{- fail (printf "%s.hostPath is a directory of one node: give its name as node" $what) }}
{{- end }}
{{- end }}
{{- if and .Values.localRegistryHosting (not .Values.network.address) }}
{{- fail "localRegistryHosting announces one address: give network.address" }}
{{- end }}
{{- end }}
