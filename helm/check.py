"""Checks what ships beside the binary, without a cluster, an engine or a network.

The chart: linted, its values' schema tried with bad values, rendered for several installations, each
object validated strictly against the schemas of old and new Kubernetes, and a few laws that no schema
knows. The Dockerfile: linted, and its laws. The compose file: its laws, since no engine can be assumed.

Run by `cargo xtask check` with the packages of requirements.txt.
"""

import contextlib
import io
import pathlib
import re
import subprocess
import sys
import tempfile
import tomllib

import helm_python as helm
import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHART = ROOT / "helm" / "strongroom"
KUBERNETES = ["1.29", "1.33", "1.37"]

INSTALLATIONS = {
    "as it comes": {},
    "one node": {"replicas": 1, "antiAffinity": "preferred"},
    "five nodes in three zones, a device, everything on": {
        "replicas": 5,
        "zones": ["a", "a", "b", "b", "c"],
        "hsm": {
            "kind": "pkcs11",
            "module": "/opt/hsm/libpkcs11.so",
            "tokenLabel": "kms-{pod}",
            "environment": {"HSM_CONF": "/opt/hsm/{pod}.conf"},
        },
        "tls": {"secretName": "api-tls"},
        "metrics": {"expose": True, "serviceMonitor": {"enabled": True, "labels": {"team": "x"}}},
        "networkPolicy": {
            "callers": [{"namespaceSelector": {"matchLabels": {"kms": "caller"}}}],
            "scrapers": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
        },
        "persistence": {"storageClassName": "fast", "size": "50Gi"},
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "topology.kubernetes.io/zone",
                "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {"matchLabels": {"app.kubernetes.io/name": "strongroom"}},
            }
        ],
        "extraVolumes": [{"name": "hsm", "configMap": {"name": "hsm"}}],
        "extraVolumeMounts": [{"name": "hsm", "mountPath": "/opt/hsm"}],
        "imagePullSecrets": [{"name": "pull"}],
        "priorityClassName": "critical",
        "nodeSelector": {"hsm": "yes"},
        "tolerations": [{"key": "kms", "operator": "Exists"}],
    },
}

REFUSED = {
    "an even number of nodes": {"replicas": 4},
    "a number as text": {"replicas": "3"},
    "a value that does not exist": {"replica": 3},
    "a device without its library": {"hsm": {"kind": "pkcs11"}},
    "a moving image tag": {"image": {"tag": "latest"}},
    "zones for other nodes": {"zones": ["a"]},
    "scraping loopback": {"metrics": {"serviceMonitor": {"enabled": True}}},
}

problems: list[str] = []


def expect(holds: object, what: str) -> None:
    if not holds:
        problems.append(what)


def render(values: dict) -> list[dict]:
    with helm.Chart.load(str(CHART)) as chart:
        chart.validate_schema(values)
        files = chart.render(values, name="demo", namespace="kms")
    notes = [text for path, text in files.items() if path.endswith("NOTES.txt")]
    expect(all("<no value>" not in text for text in files.values()) and notes, "a template misses a value")
    texts = [text for path, text in sorted(files.items()) if path.endswith(".yaml")]
    return [one for text in texts for one in yaml.safe_load_all(text) if one]


def check_chart() -> None:
    for name, values in INSTALLATIONS.items():
        report = helm.lint(str(CHART), values, strict=True)
        for message in report["messages"]:
            # 1 is information: that the chart has no icon.
            expect(str(message["severity"]).lower() in ("0", "1", "info", "unknown"), f"lint, {name}: {message}")
        expect(not report.get("errors"), f"lint, {name}: {report.get('errors')}")
        objects = render(values)
        for version in KUBERNETES:
            for one in objects:
                validate(one, version, name)
        check_laws(name, objects, values.get("replicas", 3))
    for name, values in REFUSED.items():
        try:
            render(values)
        except Exception:  # noqa: BLE001  the library's errors share no narrower base
            continue
        problems.append(f"chart: {name} is not refused")


def validate(one: dict, version: str, name: str) -> None:
    where = f"{name}, Kubernetes {version}, {one['kind']}"
    if one["kind"] == "ServiceMonitor":
        # Not Kubernetes's own: the fields that this chart uses.
        expect(set(one["spec"]) == {"selector", "endpoints"}, f"{where}: {one['spec']}")
        expect(all(set(it) == {"port", "path", "interval"} for it in one["spec"]["endpoints"]), where)
        return
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            kubernetes_validate.validate(one, version, strict=True)
    except Exception as error:  # noqa: BLE001
        problems.append(f"{where}: {error}")


def check_laws(name: str, objects: list[dict], replicas: int) -> None:
    kinds = {}
    for one in objects:
        kinds.setdefault(one["kind"], []).append(one)
    (stateful,) = kinds["StatefulSet"]
    pod = stateful["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (budget,) = kinds["PodDisruptionBudget"]
    expect(budget["spec"]["maxUnavailable"] == (replicas - 1) // 2, f"{name}: budget {budget['spec']}")
    headless = [it for it in kinds["Service"] if it["spec"].get("clusterIP") == "None"]
    expect(len(headless) == 1 and headless[0]["spec"]["publishNotReadyAddresses"], f"{name}: peers")
    expect(headless[0]["metadata"]["name"] == stateful["spec"]["serviceName"], f"{name}: service name")
    expect(pod["securityContext"]["runAsNonRoot"] is True, f"{name}: root")
    expect(pod["automountServiceAccountToken"] is False, f"{name}: an account's token is mounted")
    context = container["securityContext"]
    expect(context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"], f"{name}: {context}")
    expect(context["capabilities"] == {"drop": ["ALL"]}, f"{name}: capabilities")
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        expect(container[probe]["httpGet"]["scheme"] == "HTTPS", f"{name}: {probe}")
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"] for volume in pod["volumes"]} | {"data"}
    expect(mounts == volumes, f"{name}: mounts {mounts}, volumes {volumes}")
    expect("Secret" not in kinds, f"{name}: the chart makes a secret")

    (config,) = kinds["ConfigMap"]
    expect(len(config["data"]) == replicas, f"{name}: {len(config['data'])} configurations")
    for file, text in config["data"].items():
        settings = tomllib.loads(text)
        expect(f"{settings['node']['name']}.toml" == file, f"{name}: {file}")
        expect(settings["node"]["name"] in settings["peers"]["advertise"], f"{name}: {file}")
        exposed = not settings["admin"]["listen"].startswith("127.")
        ports = {port["name"] for port in container["ports"]}
        expect(exposed == ("admin" in ports), f"{name}: the admin listener and the pod's ports differ")


def check_dockerfile() -> None:
    for dockerfile in [ROOT / "Dockerfile"]:
        hadolint = pathlib.Path(sys.executable).parent / "hadolint"
        lint = subprocess.run([hadolint, dockerfile], capture_output=True, text=True, check=False)
        expect(lint.returncode == 0, f"hadolint:\n{lint.stdout}{lint.stderr}")
        text = dockerfile.read_text()
        bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
        expect(all(base.startswith("$") or base in re.findall(r" AS (\S+)", text) for base in bases), f"bases: {bases}")
        expect(text.rstrip().splitlines()[-1].startswith("CMD"), "Dockerfile: no last CMD")
        users = re.findall(r"^USER (\S+)", text, re.MULTILINE)
        expect(users and set(users) == {"65532:65532"}, f"users: {users}")


def check_compose() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    services = compose["services"]
    expect(len(services) == 3, f"compose: {len(services)} services")
    published = []
    for name, service in services.items():
        expect(service["read_only"] is True and service["cap_drop"] == ["ALL"], f"compose: {name} is not confined")
        expect("no-new-privileges:true" in service["security_opt"], f"compose: {name} may gain privileges")
        check = service["healthcheck"]["test"]
        expect(check[0] == "CMD", f"compose: {name} is checked through a shell")
        published += service["ports"]
        expect(all(port.startswith("127.0.0.1:") for port in service["ports"]), f"compose: {name} is published")
        named = [volume.split(":")[0] for volume in service["volumes"]]
        expect(any(volume in compose["volumes"] for volume in named), f"compose: {name} keeps nothing")
        for volume in named:
            if volume.startswith("./"):
                settings = tomllib.loads((ROOT / volume).read_text())
                expect(settings["node"]["name"] == name, f"compose: {volume} is not for {name}")
                expect(settings["api"]["advertise"] == f"{name}:8443", f"compose: {volume}")
                expect(settings["peers"]["advertise"] == f"{name}:8444", f"compose: {volume}")
        expect(set(service.get("secrets", [])) <= set(compose["secrets"]), f"compose: secrets of {name}")
    expect(len(set(published)) == len(published), "compose: one port twice")


def main() -> int:
    check_chart()
    check_dockerfile()
    check_compose()
    with tempfile.TemporaryDirectory() as folder, helm.Chart.load(str(CHART)) as chart:
        chart.save(folder)
        expect(list(pathlib.Path(folder).glob("strongroom-*.tgz")), "the chart can not be packed")
    for problem in problems:
        print(f"packaging: {problem}", file=sys.stderr)
    checked = f"{len(INSTALLATIONS)} installations on Kubernetes {', '.join(KUBERNETES)}, {len(REFUSED)} refused"
    print(f"packaging: {checked}; {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
