{{/* The release's name, with the chart's where it does not contain it. */}}
{{- define "pilotage.name" -}}
{{- $name := ternary .Release.Name (printf "%s-pilotage" .Release.Name) (contains "pilotage" .Release.Name) -}}
{{- $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{/* Cluster-wide names hold the namespace too, so that namespaced installs can stand side by side. */}}
{{- define "pilotage.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "pilotage.name" .) -}}
{{- end -}}

{{- define "pilotage.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (include "pilotage.name" .) -}}
{{- end -}}

{{- define "pilotage.selectorLabels" -}}
app.kubernetes.io/name: pilotage
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "pilotage.labels" -}}
{{ include "pilotage.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* REPOSITORY@DIGEST, or REPOSITORY:TAG; takes a dict of image, path and root. */}}
{{- define "pilotage.image" -}}
{{- $repository := required (printf "%s.repository is empty: say where the image is, for example --set %s.repository=registry.example/%s" .path .path .example) .image.repository -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (.image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "pilotage.operatorImage" -}}
{{- include "pilotage.image" (dict "image" .Values.image "path" "image" "example" "pilotage-operator" "root" .) -}}
{{- end -}}

{{- define "pilotage.runtimeImage" -}}
{{- include "pilotage.image" (dict "image" .Values.runtime.image "path" "runtime.image" "example" "pilotage-runtime" "root" .) -}}
{{- end -}}

{{/* What a container of a restricted pod must say. */}}
{{- define "pilotage.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "pilotage.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* Whether PodMonitors are made: wanted, and known to the cluster. */}}
{{- define "pilotage.podMonitors" -}}
{{- if and .Values.monitoring.enabled (.Capabilities.APIVersions.Has "monitoring.coreos.com/v1/PodMonitor") -}}yes{{- end -}}
{{- end -}}
