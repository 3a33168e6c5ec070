{{- /*
The values laid over files/argo/*.yaml. The files are read as data, so Argo's braces in them mean nothing to Helm; what a value
changes is set in the parsed object, which is then written again.
*/ -}}

{{- /* One of files/argo, parsed: include "self-reward.read" (list . "stages.yaml") | fromYaml */ -}}
{{- define "self-reward.read" -}}
{{- $path := printf "files/%s" (index . 1) -}}
{{- $text := (index . 0).Files.Get $path -}}
{{- if not $text }}{{ fail (printf "%s is missing or empty in the chart" $path) }}{{ end -}}
{{- $content := fromYaml $text -}}
{{- with $content.Error }}{{ fail (printf "%s is not YAML: %s" $path .) }}{{ end -}}
{{- toYaml $content -}}
{{- end -}}

{{- /* Names and labels that both WorkflowTemplates get. */ -}}
{{- define "self-reward.metadata" -}}
{{- $root := index . 0 -}}
{{- $metadata := (index . 1).metadata -}}
{{- $labels := $metadata.labels | default dict -}}
{{- range $name, $value := include "self-reward.labels" $root | fromYaml }}{{ $_ := set $labels $name $value }}{{ end -}}
{{- $_ := set $metadata "labels" $labels -}}
{{- with include "self-reward.annotations" (list $root dict) | fromYaml }}{{ $_ := set $metadata "annotations" .annotations }}{{ end -}}
{{- end -}}

{{- /* The WorkflowTemplate self-reward: parameters, volumes, and what holds for the whole workflow. */ -}}
{{- define "self-reward.workflow" -}}
{{- $values := .Values -}}
{{- $object := include "self-reward.read" (list . "argo/self-reward.yaml") | fromYaml -}}
{{- $_ := include "self-reward.metadata" (list . $object) -}}
{{- $spec := $object.spec -}}

{{- $defaults := dict -}}
{{- if $values.oxenServer.enabled -}}
{{- $_ := set $defaults "data_repo" "oxen+http://self-reward-oxen/self-reward/run" -}}
{{- end -}}
{{- if $values.preset -}}
{{- $presets := list -}}
{{- range $path, $_ := .Files.Glob "files/presets/*.yaml" }}{{ $presets = append $presets (base $path | trimSuffix ".yaml") }}{{ end -}}
{{- if not (has $values.preset $presets) -}}
{{- fail (printf "preset: there is no %q; presets/ has %s" $values.preset (join ", " $presets)) -}}
{{- end -}}
{{- range $name, $value := include "self-reward.read" (list . (printf "presets/%s.yaml" $values.preset)) | fromYaml -}}
{{- $_ := set $defaults $name (include "self-reward.text" $value) -}}
{{- end -}}
{{- end -}}
{{- range $name, $value := $values.parameters }}{{ $_ := set $defaults $name (include "self-reward.text" $value) }}{{ end -}}
{{- $names := list -}}
{{- range $parameter := $spec.arguments.parameters -}}
{{- $names = append $names $parameter.name -}}
{{- if hasKey $defaults $parameter.name }}{{ $_ := set $parameter "value" (get $defaults $parameter.name) }}{{ end -}}
{{- end -}}
{{- $unknown := without (keys $defaults | sortAlpha) "" -}}
{{- range $names }}{{ $unknown = without $unknown . }}{{ end -}}
{{- if $unknown -}}
{{- fail (printf "parameters or preset: the workflow has no parameter %s; it has %s" (join ", " $unknown) (join ", " (sortAlpha $names))) -}}
{{- end -}}

{{- $_ := set $spec "serviceAccountName" $values.serviceAccounts.stages -}}
{{- with $values.image.pullSecrets }}{{ $_ := set $spec "imagePullSecrets" . }}{{ end -}}
{{- if not (kindIs "invalid" $values.archiveLogs) }}{{ $_ := set $spec "archiveLogs" $values.archiveLogs }}{{ end -}}
{{- with $values.podGC }}{{ $_ := set $spec "podGC" . }}{{ end -}}
{{- with $values.ttl }}{{ $_ := set $spec "ttlStrategy" . }}{{ end -}}
{{- range $name, $value := $values.labels }}{{ $_ := set $spec.podMetadata.labels $name (include "self-reward.text" $value) }}{{ end -}}
{{- with include "self-reward.annotations" (list . dict) | fromYaml }}{{ $_ := set $spec.podMetadata "annotations" .annotations }}{{ end -}}

{{- range $volume := $spec.volumes -}}
{{- if eq $volume.name "cache" -}}
{{- if $values.cache.existingClaim -}}
{{- $_ := set $volume.persistentVolumeClaim "claimName" $values.cache.existingClaim -}}
{{- else if not $values.cache.create -}}
{{- $_ := unset $volume "persistentVolumeClaim" -}}
{{- $_ := set $volume "emptyDir" dict -}}
{{- end -}}
{{- else if and (eq $volume.name "shm") $values.sharedMemory -}}
{{- $_ := set $volume.emptyDir "sizeLimit" $values.sharedMemory -}}
{{- end -}}
{{- end -}}

{{- range $template := $spec.templates -}}
{{- if not (or $values.cache.existingClaim $values.cache.create) -}}
{{- range $group := $template.steps -}}
{{- range $step := $group -}}
{{- /* without a volume for it a base model would be fetched into a pod that ends with it */ -}}
{{- if eq $step.name "fetch-model" }}{{ $_ := set $step "when" "false" }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (eq $template.name "divided") $values.generateParallelism -}}
{{- $_ := set $template "parallelism" $values.generateParallelism -}}
{{- end -}}
{{- end -}}
{{- toYaml $object -}}
{{- end -}}

{{- /* The WorkflowTemplate self-reward-stages: images, secrets and `stages`. */ -}}
{{- define "self-reward.stages" -}}
{{- $root := . -}}
{{- $values := .Values -}}
{{- $object := include "self-reward.read" (list . "argo/stages.yaml") | fromYaml -}}
{{- $_ := include "self-reward.metadata" (list . $object) -}}
{{- range $template := $object.spec.templates -}}
{{- $stage := trimSuffix "-shard" $template.name -}}
{{- $container := $template.container -}}
{{- $image := regexReplaceAll "^.*/|:.*$" $container.image "" -}}
{{- $_ := set $container "image" (include "self-reward.image" (list $root $image)) -}}
{{- $_ := set $container "imagePullPolicy" $values.image.pullPolicy -}}
{{- range $variable := $container.env -}}
{{- if dig "valueFrom" "secretKeyRef" "" $variable -}}
{{- $_ := set $variable.valueFrom.secretKeyRef "name" (include "self-reward.secret" $root) -}}
{{- end -}}
{{- end -}}
{{- if eq $stage "plan" }}{{ $_ := set $template "serviceAccountName" $values.serviceAccounts.plan }}{{ end -}}
{{- if and $values.queue (has $stage (list "train" "generate")) -}}
{{- $metadata := $template.metadata | default dict -}}
{{- $labels := $metadata.labels | default dict -}}
{{- $_ := set $labels "kueue.x-k8s.io/queue-name" $values.queue -}}
{{- $_ := set $metadata "labels" $labels -}}
{{- $_ := set $template "metadata" $metadata -}}
{{- end -}}

{{- $given := dict -}}
{{- range list $values.stages.all (index $values.stages $stage) -}}
{{- range $name, $value := . }}{{ if not (kindIs "invalid" $value) }}{{ $_ := set $given $name $value }}{{ end }}{{ end -}}
{{- end -}}
{{- with $given.resources }}{{ $_ := set $container "resources" . }}{{ end -}}
{{- with $given.env -}}
{{- $env := . -}}
{{- range $variable := $container.env -}}
{{- $again := false -}}
{{- range $given.env }}{{ if eq .name $variable.name }}{{ $again = true }}{{ end }}{{ end -}}
{{- if not $again }}{{ $env = append $env $variable }}{{ end -}}
{{- end -}}
{{- $_ := set $container "env" $env -}}
{{- end -}}
{{- with $given.nodeSelector }}{{ $_ := set $template "nodeSelector" . }}{{ end -}}
{{- with $given.affinity }}{{ $_ := set $template "affinity" . }}{{ end -}}
{{- with $given.tolerations }}{{ $_ := set $template "tolerations" (concat ($template.tolerations | default list) .) }}{{ end -}}
{{- with $given.priorityClassName }}{{ $_ := set $template "priorityClassName" . }}{{ end -}}
{{- with $given.activeDeadlineSeconds }}{{ $_ := set $template "activeDeadlineSeconds" (toRawJson .) }}{{ end -}}
{{- if hasKey $given "retries" }}{{ $_ := set $template.retryStrategy "limit" (toRawJson $given.retries) }}{{ end -}}
{{- range $name, $value := $given.backoff }}{{ $_ := set $template.retryStrategy.backoff $name (include "self-reward.text" $value) }}{{ end -}}

{{- /* What a template of Argo has no field for. Argo's own patch of the template, if any, is kept. */ -}}
{{- $patch := $template.podSpecPatch | default "{}" | fromYaml -}}
{{- with $given.runtimeClassName }}{{ $_ := set $patch "runtimeClassName" . }}{{ end -}}
{{- if hasKey $given "terminationGracePeriodSeconds" -}}
{{- $_ := set $patch "terminationGracePeriodSeconds" $given.terminationGracePeriodSeconds -}}
{{- end -}}
{{- if or (hasKey $patch "runtimeClassName") (hasKey $patch "terminationGracePeriodSeconds") -}}
{{- $_ := set $template "podSpecPatch" (toRawJson $patch) -}}
{{- end -}}
{{- end -}}
{{- toYaml $object -}}
{{- end -}}
