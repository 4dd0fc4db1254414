{{- define "trimtab.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "trimtab.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "trimtab.labels" -}}
{{ include "trimtab.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "trimtab.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "trimtab.name" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* Whether this chart makes the secret. */}}
{{- define "trimtab.makesSecret" -}}
{{- with .Values.keys -}}
{{- if and (not .existingSecret) (or .apiKeys .adminKey .upstreamKey) -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{/* The name of the secret; empty if there are no keys. */}}
{{- define "trimtab.secret" -}}
{{- if .Values.keys.existingSecret -}}
{{- .Values.keys.existingSecret -}}
{{- else if include "trimtab.makesSecret" . -}}
{{- include "trimtab.name" . -}}
{{- end -}}
{{- end -}}

{{/* A setting's value in the environment: lists and mappings as words, numbers without an exponent. */}}
{{- define "trimtab.value" -}}
{{- if kindIs "map" . -}}
{{- $words := list -}}
{{- range $name, $value := . -}}{{- $words = append $words (printf "%s=%v" $name $value) -}}{{- end -}}
{{- join " " $words -}}
{{- else if kindIs "slice" . -}}
{{- join " " . -}}
{{- else if and (kindIs "float64" .) (eq . (floor .)) -}}
{{- int64 . | toString -}}
{{- else -}}
{{- toString . -}}
{{- end -}}
{{- end -}}
