{{- define "flowtally.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* What selects the pods of a component: it can never change. */ -}}
{{- define "flowtally.selector" -}}
app.kubernetes.io/name: flowtally
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "flowtally.labels" -}}
{{ include "flowtally.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "flowtally.scheme" -}}
{{- if .Values.tls.secret }}https{{ else }}http{{ end -}}
{{- end -}}

{{- define "flowtally.serviceAccount" -}}
{{- if .Values.serviceAccount.name -}}
{{- .Values.serviceAccount.name -}}
{{- else if .Values.serviceAccount.create -}}
{{- include "flowtally.fullname" . -}}
{{- else -}}
default
{{- end -}}
{{- end -}}

{{- /* The configuration file: keys and values as in deploy/flowtally.toml. */ -}}
{{- define "flowtally.toml" -}}
{{- range $key, $value := .Values.config }}
{{ $key }} = {{ $value | toJson }}
{{- end }}
{{- end -}}

{{- /* Values that contradict each other, which a schema cannot find. */ -}}
{{- define "flowtally.validate" -}}
{{- $guarded := or .Values.access.secret .Values.access.anonymous .Values.tls.clientCertificates -}}
{{- if and (ne .Values.mode "agent") (not $guarded) -}}
{{- fail "nobody is permitted to send and read: set access.secret, tls.clientCertificates, or access.anonymous=true" -}}
{{- end -}}
{{- if and .Values.tls.clientCertificates (not .Values.tls.secret) -}}
{{- fail "tls.clientCertificates needs tls.secret" -}}
{{- end -}}
{{- if and (eq .Values.mode "cluster") (not .Values.cluster.kafka.brokers) -}}
{{- fail "mode: cluster needs cluster.kafka.brokers" -}}
{{- end -}}
{{- if and (eq .Values.mode "cluster") (gt (int .Values.cluster.replicas) (int .Values.cluster.kafka.partitions)) -}}
{{- fail "cluster.replicas is more than cluster.kafka.partitions: nodes without a partition have nothing to do" -}}
{{- end -}}
{{- if and (eq .Values.mode "agent") (not (and .Values.agent.enabled .Values.agent.url)) -}}
{{- fail "mode: agent needs agent.enabled=true and agent.url" -}}
{{- end -}}
{{- range $key := list "listen" "data-dir" "memory-max" "write-token-file" "read-token-file" "node-token-file" "tls-cert" "tls-key" "tls-client-ca" "allow-anonymous" "kafka-brokers" "kafka-topic" "kafka-partitions" "kafka-option" "node-name" "node-url" "node-ca" "checkpoint-url" "checkpoint-interval" -}}
{{- if hasKey $.Values.config $key -}}
{{- fail (printf "config.%s: the chart sets it from other values" $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
