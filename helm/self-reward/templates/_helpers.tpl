{{- /* A value as text: a number as it stands there (Helm would write 1.728e+06), a list as JSON, null as nothing. */ -}}
{{- define "self-reward.text" -}}
{{- if kindIs "string" . }}{{ . }}{{ else if not (kindIs "invalid" .) }}{{ toRawJson . }}{{ end -}}
{{- end -}}

{{- define "self-reward.labels" -}}
{{- $labels := dict
  "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version)
  "app.kubernetes.io/name" "self-reward"
  "app.kubernetes.io/instance" .Release.Name
  "app.kubernetes.io/version" .Chart.AppVersion
  "app.kubernetes.io/managed-by" .Release.Service -}}
{{- range $name, $value := .Values.labels }}{{ $_ := set $labels $name (include "self-reward.text" $value) }}{{ end -}}
{{- toYaml $labels -}}
{{- end -}}

{{- /* The image NAME of `image`: include "self-reward.image" (list . "data") */ -}}
{{- define "self-reward.image" -}}
{{- $image := (index . 0).Values.image -}}
{{- list $image.registry $image.prefix (printf "%s:%s" (index . 1) (include "self-reward.text" $image.tag)) | compact | join "/" -}}
{{- end -}}

{{- define "self-reward.secret" -}}
{{- .Values.secrets.existingSecret | default "self-reward" -}}
{{- end -}}

{{- /* OXEN_TOKEN: the one given, else the existing one, else a new one for the server of this release. */ -}}
{{- define "self-reward.token" -}}
{{- if .Values.secrets.oxenToken -}}
{{- .Values.secrets.oxenToken -}}
{{- else -}}
{{- $there := lookup "v1" "Secret" .Release.Namespace "self-reward" | default dict -}}
{{- $token := dig "data" "OXEN_TOKEN" "" $there | b64dec -}}
{{- if and .Values.oxenServer.enabled (not $token) }}{{ $token = randAlphaNum 48 }}{{ end -}}
{{- $token -}}
{{- end -}}
{{- end -}}

{{- /* HF_TOKEN: the one given, else the existing one. */ -}}
{{- define "self-reward.hf-token" -}}
{{- if .Values.secrets.hfToken -}}
{{- .Values.secrets.hfToken -}}
{{- else -}}
{{- lookup "v1" "Secret" .Release.Namespace "self-reward" | default dict | dig "data" "HF_TOKEN" "" | b64dec -}}
{{- end -}}
{{- end -}}

{{- /* A PersistentVolumeClaim's spec from `cache` or `oxenServer.persistence`. */ -}}
{{- define "self-reward.claim-spec" -}}
accessModes: {{ toJson .accessModes }}
resources:
  requests:
    storage: {{ include "self-reward.text" .size | quote }}
{{- if eq .storageClass "-" }}
storageClassName: ""
{{- else if .storageClass }}
storageClassName: {{ .storageClass | quote }}
{{- end }}
{{- end -}}

{{- /* Annotations of an object beside `annotations`: include "self-reward.annotations" (list . (dict ...)) */ -}}
{{- define "self-reward.annotations" -}}
{{- $annotations := dict -}}
{{- range list (index . 0).Values.annotations (index . 1) -}}
{{- range $name, $value := . }}{{ $_ := set $annotations $name (include "self-reward.text" $value) }}{{ end -}}
{{- end -}}
{{- with $annotations }}annotations:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{- /* What the standard "restricted" asks of a container. */ -}}
{{- define "self-reward.container-security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "self-reward.pod-security" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}
