"""The chart as helm renders it: what Kubernetes' schemas say, and what our own processes make of it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from chart import CHART, EXAMPLES, FOLDER, Document, Render, Validate

from router.http.metrics import RequestMetrics
from router.job import WorkerState
from xgr_runtime.cli import main
from xgr_runtime.config import DecodeConfig, PrefillConfig, RouterConfig, parse
from xgr_runtime.discovery.kubernetes.pods import KEY_ANNOTATION, Pod, address_of
from xgr_runtime.transport.keyring import read_keyring
from xgr_runtime.wire.messages import PROTOCOL, Limits, Load, ModelIdentity, WorkerHello

CONFIGS = {"router": RouterConfig, "prefill": PrefillConfig, "decode": DecodeConfig}
OURS = "app.kubernetes.io/component"
NO_SCHEMA = {"ScaledObject", "ServiceMonitor"}  # of operators


def of_kind(release: list[Document], kind: str) -> list[Document]:
    return [document for document in release if document["kind"] == kind]


def workloads(release: list[Document]) -> dict[str, Document]:
    return {found["metadata"]["labels"][OURS]: found for found in of_kind(release, "Deployment")}


def template(workload: Document) -> Any:
    return workload["spec"]["template"]


def container(workload: Document) -> Any:
    (only,) = template(workload)["spec"]["containers"]
    return only


def parsed(role: str, workload: Document) -> Any:
    """What the process makes of its arguments and variables, those of Kubernetes put in."""
    main = container(workload)
    ours = {"POD_NAME": f"shop-{role}-1", "POD_IP": "10.1.2.3"}
    texts = {found["name"]: found.get("value", "given") for found in main["env"]}
    args = [re.sub(r"\$\((\w+)\)", lambda name: (texts | ours)[name[1]], arg) for arg in main["args"]]
    kind: Any = CONFIGS[role]
    return parse(kind, args, texts)


@pytest.mark.in_turns("version")
@pytest.mark.parametrize("version", ["1.29", "1.35"])
def test_manifests_are_valid(
    documents: dict[str, list[Document]], validate: Validate, tmp_path: Path, version: str
) -> None:
    younger = () if version == "1.35" else ("gpu",)  # an image as a volume
    found = {
        json.dumps(document, sort_keys=True): document
        for example, release in documents.items()
        for document in release
        if document["kind"] not in NO_SCHEMA and example not in younger
    }
    right, wrong = tmp_path / "right.yaml", tmp_path / "wrong.yaml"
    right.write_text(yaml.safe_dump_all(found.values()))
    odd = of_kind([*found.values()], "Deployment")[0]
    wrong.write_text(yaml.safe_dump(odd | {"spec": odd["spec"] | {"paus": True}}))
    (said,) = validate([right, wrong], version).splitlines()
    assert f"{wrong} did not validate" in said and "paus" in said, said


def test_the_chart_is_as_helm_wants_it(helm: Path) -> None:
    values = FOLDER / "examples" / "minimal.yaml"
    command = [str(helm), "lint", "--strict", str(CHART), f"--values={values}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_each_process_takes_its_flags(release: list[Document]) -> None:
    found = workloads(release)
    assert set(found) == set(CONFIGS)
    for role, workload in found.items():
        config, runs = parsed(role, workload), container(workload)
        module = "router" if role == "router" else f"{role}_worker"
        assert runs["command"] == ["python", "-m", module]
        assert config.name == f"shop-{role}-1", "two routers of one name would end each other's requests"
        assert config.model_path.startswith("/model/")
        spec = template(workload)["spec"]
        assert spec["enableServiceLinks"] is False, "XGR_PORT of a service named xgr would be refused"
        mounted = {mount["mountPath"] for mount in runs["volumeMounts"]}
        paths = [config.model_path, config.curve_key, config.curve_allow, getattr(config, "catalog", "")]
        for path in filter(None, paths):
            assert any(path.startswith(f"{mount}/") for mount in mounted), path
        volumes = {volume["name"] for volume in spec["volumes"]}
        assert {mount["name"] for mount in runs["volumeMounts"]} <= volumes


def test_a_pod_has_time_for_what_it_drains(release: list[Document]) -> None:
    for role, workload in workloads(release).items():
        config, spec = parsed(role, workload), template(workload)["spec"]
        needed = config.drain_timeout if role == "router" else config.leave_timeout
        if role == "router":
            (command, seconds) = container(workload)["lifecycle"]["preStop"]["exec"]["command"]
            assert command == "sleep" and int(seconds) > 0
            needed += int(seconds)
        assert needed > 0 and spec["terminationGracePeriodSeconds"] > needed


def test_the_router_finds_the_workers(release: list[Document]) -> None:
    """Its selector chooses their pods, and their pods say where they listen and whose key they have."""
    found = workloads(release)
    config = parsed("router", found["router"])
    assert config.kubernetes_namespace == "shops"
    for role in ("prefill", "decode"):
        metadata, worker = template(found[role])["metadata"], parsed(role, found[role])
        assert chooses(config.kubernetes_selector, metadata["labels"])
        pod = {"metadata": metadata | {"name": "x"}, "spec": template(found[role])["spec"]}
        made = msgspec.convert(pod | {"status": {"phase": "Running", "podIP": "10.1.2.3"}}, Pod)
        port = worker.control_address.rpartition(":")[2]
        assert address_of(made) == (role, f"tcp://10.1.2.3:{port}#{metadata['annotations'][KEY_ANNOTATION]}")
    assert not chooses(config.kubernetes_selector, template(found["router"])["metadata"]["labels"])
    decode = parsed("decode", found["decode"])
    assert decode.advertise_data_address == f"tcp://10.1.2.3:{decode.data_address.rpartition(':')[2]}"


def chooses(selector: str, labels: dict[str, str]) -> bool:
    """As kubectl's -l reads it: `a=b`, and `a in (b,c)`."""
    terms = re.findall(r"([^,=\s]+)\s*(?:=\s*([^,\s]+)|in\s*\(([^)]*)\))", selector)
    return all(labels.get(key) in ([value] if value else some.split(",")) for key, value, some in terms)


def test_the_router_may_ask_for_pods_and_nothing_else(release: list[Document]) -> None:
    (role,), (binding,) = of_kind(release, "Role"), of_kind(release, "RoleBinding")
    (account,) = of_kind(release, "ServiceAccount")
    assert role["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    (subject,) = binding["subjects"]
    name = account["metadata"]["name"]
    assert (subject["name"], subject["namespace"]) == (name, account["metadata"]["namespace"])
    for kind, workload in workloads(release).items():
        spec = template(workload)["spec"]
        assert spec["automountServiceAccountToken"] is (kind == "router")
        assert spec.get("serviceAccountName") == (name if kind == "router" else None)


def test_pods_keep_to_the_restricted_profile(release: list[Document]) -> None:
    for workload in workloads(release).values():
        spec = template(workload)["spec"]
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        for part in (*spec["initContainers"], *spec["containers"]):
            assert part["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert part["resources"]["limits"]["memory"]


def test_probes_ask_what_is_answered(release: list[Document]) -> None:
    for role, workload in workloads(release).items():
        main = container(workload)
        ports = {port["name"]: port["containerPort"] for port in main["ports"]}
        config = parsed(role, workload)
        port = config.port if role == "router" else int(config.probe_address.rpartition(":")[2])
        for kind, path in (("readinessProbe", "/readiness"), ("livenessProbe", "/liveness")):
            asked = main[kind]["httpGet"]
            assert asked["path"] == path and ports[asked["port"]] == port
        start = main["startupProbe"]
        assert start["periodSeconds"] * start["failureThreshold"] >= 300


def test_keys_are_taken_from_the_secret(
    documents: dict[str, list[Document]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `xgr keys kubernetes` writes, laid out as kubelet does, copied by the chart's command."""
    assert main(["keys", "kubernetes"]) == 0
    secret = json.loads(capsys.readouterr().out)
    for role, workload in workloads(documents["minimal"]).items():
        (volume,) = [v["secret"] for v in template(workload)["spec"]["volumes"] if "secret" in v]
        assert volume["secretName"] == secret["metadata"]["name"]
        assert {item["key"] for item in volume["items"]} == {f"{role}.key", "allow"}, "no other's key"
        given, keys = tmp_path / role / "secret", tmp_path / role / "keys"
        (given / "..data").mkdir(parents=True)
        keys.mkdir()
        for item in volume["items"]:
            real = given / "..data" / item["path"]
            real.write_text(secret["stringData"][item["key"]])
            real.chmod(volume["defaultMode"])
            (given / item["path"]).symlink_to(real)
        (first,) = template(workload)["spec"]["initContainers"]
        command = [
            part.replace("/secret/", f"{given}/").replace("/keys", str(keys)) for part in first["command"]
        ]
        subprocess.run(command, check=True)
        config = parsed(role, workload)
        here = [str(keys / Path(path).name) for path in (config.curve_key, config.curve_allow)]
        keyring = read_keyring(*here)
        assert keyring is not None and keyring.name == role and set(keyring.allowed) == set(CONFIGS)


def test_workers_are_scaled_by_metrics_that_there_are(documents: dict[str, list[Document]]) -> None:
    series = our_series()
    for found in of_kind(documents["keda"], "ScaledObject"):
        role = found["metadata"]["labels"][OURS]
        (trigger,) = found["spec"]["triggers"]
        query = trigger["metadata"]["query"]
        names = set(re.findall(r"\bxgr_\w+", query))
        assert len(names) == 2 and names <= series
        assert f'role="{role}"' in query and 'namespace="shops",release="shop"' in query
        target = found["spec"]["scaleTargetRef"]["name"]
        assert target == workloads(documents["keda"])[role]["metadata"]["name"]
    adapter = yaml.safe_load((FOLDER / "samples" / "prometheus-adapter.yaml").read_text())
    given = {rule["name"]["as"] for rule in adapter["rules"]["external"]}
    for found in of_kind(documents["hpa"], "HorizontalPodAutoscaler"):
        (metric,) = found["spec"]["metrics"]
        assert metric["external"]["metric"]["name"] in given
    for rule in adapter["rules"]["external"]:
        assert set(re.findall(r"\bxgr_\w+", rule["metricsQuery"] + rule["seriesQuery"])) <= series


def our_series() -> set[str]:
    """What /metrics names, of a router with one worker."""
    load = Load(1, 0, 0, 4, 0, 0, 2, {})
    model = ModelIdentity("hash", "float32", 2, 1, 4, 8, 100, 1)
    hello = WorkerHello(PROTOCOL, "decode", "d", 4, model, "", [], Limits(8), load)
    worker = WorkerState("tcp://x", "decode", True, True, "", hello, 0, 0.0, 0.0, False)
    text = RequestMetrics(lambda: 0, lambda: [worker]).render().decode()
    return set(re.findall(r"^xgr_\w+", text, re.MULTILINE))


def test_who_scales_counts_the_workers(documents: dict[str, list[Document]]) -> None:
    for example, release in documents.items():
        for role in ("prefill", "decode"):
            assert ("replicas" in workloads(release)[role]["spec"]) is (example not in ("keda", "hpa"))


def test_a_worker_on_a_gpu_gets_one(documents: dict[str, list[Document]]) -> None:
    for role in ("prefill", "decode"):
        workload = workloads(documents["gpu"])[role]
        assert container(workload)["resources"]["limits"] == {"memory": "32Gi", "nvidia.com/gpu": 1}
        assert parsed(role, workload).device == "cuda"
        assert "nvidia.com/gpu" not in container(workloads(documents["minimal"])[role])["resources"]["limits"]
    beside = template(workloads(documents["gpu"])["decode"])["spec"]["affinity"]["podAffinity"]
    (term,) = beside["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["labelSelector"]["matchLabels"][OURS] == "prefill"


def test_a_store_has_one_router(documents: dict[str, list[Document]], render: Render) -> None:
    router = workloads(documents["changing-catalog"])["router"]
    assert router["spec"]["replicas"] == 1 and router["spec"]["strategy"] == {"type": "Recreate"}
    assert parsed("router", router).catalog_store == "/store/catalog"
    done = render("changing-catalog", "--set=router.replicas=2")
    assert done.returncode and "one writer" in done.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("image.repository=", "/image/repository"),
        ("image.pullPolicy=Sometimes", "/image/pullPolicy"),
        ("model.path=", "/model/path"),
        ("model.path=/etc", "/model/path"),
        ("model.path=a/../../etc", "/model/path"),
        ("model.path=$(POD_IP)", "/model/path"),
        ("model.volume.nfs.server=x", "/model/volume"),
        ("keys.secret=", "/keys/secret"),
        ("keys.secret=Capital", "/keys/secret"),
        ("apiKeys.secret=", "apiKeys.secret is empty"),
        ("apiKeys.open=true", "leave one out"),
        ("prefill.replicas=0", "/prefill/replicas"),
        ("prefill.replica=2", "replica"),
        ("prefill.device=tpu", "/prefill/device"),
        ("decode.args[0]=max-rows=7", "/decode/args/0"),
        ("decode.drainSeconds=0", "/decode/drainSeconds"),
        ("router.env[0].value=x", "/router/env/0"),
        ("rollout.maxSurge=0", "no pod could ever be replaced"),
        ("rollout.maxSurge=200%", "/rollout/maxSurge"),
        ("topology.beside=near", "/topology/beside"),
        ("service.port=70000", "/service/port"),
        ("serviceMonitor.interval=often", "/serviceMonitor/interval"),
        ("autoscaling.kind=magic", "/autoscaling/kind"),
        ("autoscaling.kind=keda", "autoscaling.prometheus is empty"),
        ("autoscaling.prefill.min=9", "more than its max"),
        ("nameOverride=-x", "/nameOverride"),
        ("logging=DEBUG", "logging"),
    ],
)
def test_wrong_values_are_refused_by_name(render: Render, flags: str, said: str) -> None:
    done = render("minimal", f"--set={flags}")
    assert done.returncode != 0 and said in done.stderr, done.stderr
    assert not done.stdout


def test_examples_are_told_of_what_they_are_for() -> None:
    assert len(EXAMPLES) >= 5
    for example in EXAMPLES:
        assert (FOLDER / "examples" / f"{example}.yaml").read_text().startswith("# ")


def test_the_documented_values_are_enough(render: Render, tmp_path: Path) -> None:
    text = (FOLDER.parents[1] / "docs" / "kubernetes.md").read_text()
    (block,) = re.findall(r"    # values.yaml\n((?:    .+\n)+)", text)
    values = tmp_path / "values.yaml"
    values.write_text("".join(line[4:] for line in block.splitlines(keepends=True)))
    done = render("minimal", f"--values={values}")
    assert done.returncode == 0, done.stderr
    assert set(yaml.safe_load(values.read_text())) == {"image", "model", "catalog", "keys", "apiKeys"}
