{{- define "xgr.name" -}}
{{- .Values.nameOverride | default .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- /* Labels that choose the pods of a role: (list . "decode") */ -}}
{{- define "xgr.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "xgr.labels" -}}
{{ include "xgr.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end -}}

{{- define "xgr.image" -}}
{{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) | quote }}
{{- end -}}

{{- define "xgr.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "xgr.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- /* Where to be scheduled: a role's own wishes. (list . values) */ -}}
{{- define "xgr.placing" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .runtimeClassName }}
runtimeClassName: {{ . | quote }}
{{- end }}
{{- end -}}

{{- /* A process takes keys from files that are its own alone, and a Secret's belong to root and a group. */ -}}
{{- define "xgr.keysContainer" -}}
{{- $root := index . 0 -}}
{{- $role := index . 1 -}}
name: keys
image: {{ include "xgr.image" $root }}
imagePullPolicy: {{ $root.Values.image.pullPolicy }}
command: [install, --mode=0400, /secret/{{ $role }}.key, /secret/allow, /keys]
securityContext:
  {{- include "xgr.containerSecurity" $root | nindent 2 }}
resources:
  requests: { cpu: 10m, memory: 16Mi }
  limits: { memory: 64Mi }
volumeMounts:
  - { name: secret, mountPath: /secret, readOnly: true }
  - { name: keys, mountPath: /keys }
{{- end -}}

{{- define "xgr.volumes" -}}
{{- $root := index . 0 -}}
{{- $role := index . 1 -}}
{{- $values := index . 2 -}}
- name: model
  {{- toYaml $root.Values.model.volume | nindent 2 }}
{{- with $root.Values.catalog.volume }}
- name: catalog
  {{- toYaml . | nindent 2 }}
{{- end }}
- name: secret
  secret:
    secretName: {{ $root.Values.keys.secret | quote }}
    defaultMode: 0440
    items: # its own secret key, and no other's
      - { key: {{ $role }}.key, path: {{ $role }}.key }
      - { key: allow, path: allow }
- name: keys
  emptyDir: { medium: Memory, sizeLimit: 1Mi }
- name: tmp
  emptyDir: {}
- name: cache
  {{- toYaml ($values.cache | default (dict "emptyDir" (dict))) | nindent 2 }}
{{- end -}}

{{- define "xgr.mounts" -}}
- { name: model, mountPath: /model, readOnly: true }
{{- if .Values.catalog.volume }}
- { name: catalog, mountPath: /catalog, readOnly: true }
{{- end }}
- { name: keys, mountPath: /keys, readOnly: true }
- { name: tmp, mountPath: /tmp }
- { name: cache, mountPath: /cache }
{{- end -}}

{{- /* Flags of every process. */ -}}
{{- define "xgr.args" -}}
{{- $root := index . 0 -}}
{{- $role := index . 1 -}}
- --name=$(POD_NAME)
- --model-path=/model/{{ $root.Values.model.path }}
{{- with $root.Values.model.basePath }}
- --base-model-path=/model/{{ . }}
{{- end }}
- --curve-key=/keys/{{ $role }}.key
- --curve-allow=/keys/allow
- --log-level={{ $root.Values.logLevel }}
{{- end -}}

{{- define "xgr.catalogPath" -}}
{{ empty .Values.catalog.volume | ternary "/model" "/catalog" }}/{{ .Values.catalog.path }}
{{- end -}}

{{- define "xgr.env" -}}
- name: POD_NAME
  valueFrom: { fieldRef: { fieldPath: metadata.name } }
- name: POD_IP
  valueFrom: { fieldRef: { fieldPath: status.podIP } }
{{- end -}}

{{- /* What cannot be right together, said before anything is made. */ -}}
{{- define "xgr.check" -}}
{{- if and .Values.apiKeys.secret .Values.apiKeys.open -}}
{{- fail "apiKeys.secret and apiKeys.open: leave one out" -}}
{{- else if not (or .Values.apiKeys.secret .Values.apiKeys.open) -}}
{{- fail "apiKeys.secret is empty: name a Secret with clients' keys, or set apiKeys.open to serve whoever reaches the router" -}}
{{- end -}}
{{- if and .Values.catalog.store.claim (gt (int .Values.router.replicas) 1) -}}
{{- fail "catalog.store has one writer: set router.replicas to 1" -}}
{{- end -}}
{{- if and (eq .Values.autoscaling.kind "keda") (not .Values.autoscaling.prometheus) -}}
{{- fail "autoscaling.prometheus is empty: give the address that KEDA asks, as in http://prometheus.monitoring:9090" -}}
{{- end -}}
{{- range $role := list "prefill" "decode" -}}
{{- $bounds := index $.Values.autoscaling $role -}}
{{- if gt (int $bounds.min) (int $bounds.max) -}}
{{- fail (printf "autoscaling.%s.min is more than its max: lower it" $role) -}}
{{- end -}}
{{- end -}}
{{- if and (eq (toString .Values.rollout.maxSurge) "0") (eq (toString .Values.rollout.maxUnavailable) "0") -}}
{{- fail "rollout.maxSurge and rollout.maxUnavailable are both 0: no pod could ever be replaced" -}}
{{- end -}}
{{- end -}}
