{{- define "strongroom.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 45 | trimSuffix "-" -}}
{{- else if contains (default .Chart.Name .Values.nameOverride) .Release.Name -}}
{{- .Release.Name | trunc 45 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (default .Chart.Name .Values.nameOverride) | trunc 45 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "strongroom.headless" -}}
{{- printf "%s-nodes" (include "strongroom.fullname" .) -}}
{{- end -}}

{{- define "strongroom.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "strongroom.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "strongroom.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{/* One configuration file per node: a node's name and addresses are its own, and nothing overrides the file. */}}
{{- define "strongroom.config" -}}
{{- $root := .root -}}
{{- $pod := printf "%s-%d" (include "strongroom.fullname" $root) .ordinal -}}
{{- $host := printf "%s.%s.%s.svc.%s" $pod (include "strongroom.headless" $root) $root.Release.Namespace $root.Values.clusterDomain -}}
{{- with $root.Values -}}
[node]
name = {{ $pod | quote }}
data_dir = "/var/lib/strongroom"
{{- if .zones }}
zone = {{ index .zones $.ordinal | quote }}
{{- end }}

[api]
listen = "0.0.0.0:8443"
advertise = {{ printf "%s:8443" $host | quote }}

[peers]
listen = "0.0.0.0:8444"
advertise = {{ printf "%s:8444" $host | quote }}

[admin]
listen = {{ ternary "0.0.0.0:8445" "127.0.0.1:8445" .metrics.expose | quote }}
{{- if .tls.secretName }}

[tls]
certificate = "/etc/strongroom/tls/tls.crt"
key = "/etc/strongroom/tls/tls.key"
{{- end }}

[hsm]
kind = {{ .hsm.kind | quote }}
pin_file = "/etc/strongroom/secrets/pin"
{{- if eq .hsm.kind "embedded" }}
path = "/var/lib/strongroom/token"
{{- else }}
module = {{ .hsm.module | quote }}
token_label = {{ .hsm.tokenLabel | replace "{pod}" $pod | quote }}
{{- end }}
{{- if .hsm.environment }}

[hsm.environment]
{{- range $name, $value := .hsm.environment }}
{{ $name }} = {{ $value | replace "{pod}" $pod | quote }}
{{- end }}
{{- end }}

[raft]
heartbeat = {{ .raft.heartbeat | quote }}
election_min = {{ .raft.election_min | quote }}
election_max = {{ .raft.election_max | quote }}

[log]
format = {{ .log.format | quote }}
level = {{ .log.level | quote }}
{{- end -}}
{{- end -}}
