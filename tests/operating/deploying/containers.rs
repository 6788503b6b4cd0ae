//! Dockerfile, compose.yaml and the Kubernetes manifests: their parts fit each other and the binary.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use tests::nodes::target_dir;
use yaml_rust2::{Yaml, YamlLoader};

use super::{check_config, check_words, deploy, read, run};

/// What stands at a path of keys.
fn at<'a>(yaml: &'a Yaml, path: &[&str]) -> &'a Yaml {
    path.iter().fold(yaml, |yaml, key| match key.parse::<usize>() {
        Ok(nth) => &yaml[nth],
        Err(_) => &yaml[*key],
    })
}

fn list(yaml: &Yaml) -> &[Yaml] {
    yaml.as_vec().map_or(&[], Vec::as_slice)
}

fn texts(yaml: &Yaml) -> Vec<String> {
    list(yaml).iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

fn text<'a>(yaml: &'a Yaml, path: &[&str]) -> Result<&'a str> {
    at(yaml, path).as_str().with_context(|| format!("no text at {path:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_image_runs_the_binary_as_nobody_and_asks_it_for_its_health() -> Result<()> {
    let file = read("Dockerfile")?.replace("\\\n", " ");
    let lines: Vec<(&str, &str)> = file.lines().filter_map(|line| line.trim().split_once(' ')).collect();
    let values = |word: &str| lines.iter().filter(|(w, _)| *w == word).map(|(_, v)| *v).collect::<Vec<_>>();
    ensure!(values("FROM").len() == 2, "two stages: {:?}", values("FROM"));
    ensure!(values("USER") == ["65532:65532"], "{:?}", values("USER"));
    let words = |value: &str| -> Result<Vec<String>> {
        let array = value.find('[').context("the form of a list")?;
        Ok(serde_json::from_str(&value[array..])?)
    };
    let health = values("HEALTHCHECK");
    check_words(&words(health.first().context("HEALTHCHECK")?)?).await?;
    let (entry, command) = (values("ENTRYPOINT"), values("CMD"));
    let line =
        [words(entry.first().context("ENTRYPOINT")?)?, words(command.first().context("CMD")?)?].concat();
    check_words(&line).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_services_of_compose_fit_their_configs_and_each_other() -> Result<()> {
    let docs = YamlLoader::load_from_str(&read("compose.yaml")?)?;
    let services = at(&docs[0], &["services"]).as_hash().context("services")?;
    let volumes = at(&docs[0], &["volumes"]).as_hash().context("volumes")?;
    let subnet = text(&docs[0], &["networks", "inside", "ipam", "config", "0", "subnet"])?;
    ensure!(read("compose/frontend.toml")?.contains(&format!("proxy_from = [\"{subnet}\"]")), "{subnet}");
    let mut names = BTreeSet::new();
    for (name, service) in services {
        let name = name.as_str().context("a name")?;
        names.insert(name);
        for mount in texts(at(service, &["volumes"])) {
            let source = mount.split(':').next().unwrap_or_default();
            match source.strip_prefix("./") {
                // Made by certificates.sh before the start.
                Some(path) if path.starts_with("compose/certificates/") => {}
                Some(path) => ensure!(deploy(path).exists(), "`{name}` mounts `{path}`, which is not there"),
                None => ensure!(volumes.keys().any(|v| v.as_str() == Some(source)), "no volume `{source}`"),
            }
        }
        if name == "haproxy" {
            continue;
        }
        let role = if name.starts_with("front") { "frontend" } else { "backend" };
        let sets = check_words(&texts(at(service, &["command"]))).await?;
        ensure!(sets.contains(&format!("node.name=\"{name}\"")), "{sets:?}");
        ensure!(sets.contains(&format!("cluster.advertise=\"{name}:7400\"")), "{sets:?}");
        check_config(&deploy(&format!("compose/{role}.toml")), &sets).await?;
        // Its own config is at the path of the command, with the certificates of its own links.
        let mounts = texts(at(service, &["volumes"]));
        ensure!(mounts.contains(&format!("./compose/{role}.toml:/etc/rookery/{role}.toml:ro")), "{mounts:?}");
        ensure!(
            mounts.contains(&format!("./compose/certificates/{name}:/etc/rookery/links:ro")),
            "{mounts:?}"
        );
    }
    ensure!(names == BTreeSet::from(["back1", "back2", "back3", "front1", "front2", "haproxy"]), "{names:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_script_makes_certificates_with_the_roles_of_each_node() -> Result<()> {
    let folder = target_dir()?.join("tests").join(format!("certificates-{}", std::process::id()));
    let script = deploy("certificates.sh");
    let path = folder.to_str().context("a path that is text")?;
    for _ in 0..2 {
        // The second time all is there, and stays.
        let (well, said) = run(&script, &[path, "chat.example", "front1", "back1", "both1"]).await?;
        ensure!(well, "{said}");
    }
    for (node, frontend, backend) in [("front1", true, false), ("back1", false, true), ("both1", true, true)]
    {
        let file = folder.join(node).join("node.pem");
        let file = file.to_str().context("text")?;
        let ca = folder.join(node).join("ca.pem");
        let (well, said) = run("openssl", &["verify", "-CAfile", ca.to_str().context("text")?, file]).await?;
        ensure!(well, "{said}");
        let (_, said) = run("openssl", &["x509", "-in", file, "-noout", "-ext", "subjectAltName"]).await?;
        ensure!(said.contains("DNS:rookery-cluster"), "{said}");
        ensure!(said.contains("DNS:frontend.rookery-cluster") == frontend, "{node}: {said}");
        ensure!(said.contains("DNS:backend.rookery-cluster") == backend, "{node}: {said}");
    }
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

/// Every manifest, by kind and name.
fn manifests() -> Result<BTreeMap<(String, String), Yaml>> {
    let mut found = BTreeMap::new();
    for name in
        texts(at(&YamlLoader::load_from_str(&read("kubernetes/kustomization.yaml")?)?[0], &["resources"]))
    {
        for doc in YamlLoader::load_from_str(&read(&format!("kubernetes/{name}"))?)? {
            let kind = text(&doc, &["kind"])?.to_owned();
            text(&doc, &["apiVersion"])?;
            let named = text(&doc, &["metadata", "name"])?.to_owned();
            ensure!(
                found.insert((kind.clone(), named.clone()), doc).is_none(),
                "{kind} `{named}` stands twice"
            );
        }
    }
    for entry in std::fs::read_dir(deploy("kubernetes"))? {
        let name = entry?.file_name().into_string().ok().context("a name that is text")?;
        let known = name == "kustomization.yaml" || read("kubernetes/kustomization.yaml")?.contains(&name);
        ensure!(known, "`{name}` is not in the kustomization");
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_manifests_of_kubernetes_fit_the_binary_and_each_other() -> Result<()> {
    let all = manifests()?;
    let one =
        |kind: &str, name: &str| all.get(&(kind.into(), name.into())).context(format!("no {kind} `{name}`"));
    let configs = at(one("ConfigMap", "rookery")?, &["data"]).as_hash().context("data")?;
    let folder = target_dir()?.join("tests").join(format!("kubernetes-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    for (workload, role, budget) in [
        (one("StatefulSet", "rookery-backend")?, "backend", one("PodDisruptionBudget", "rookery-backends")?),
        (
            one("Deployment", "rookery-frontend")?,
            "frontend",
            one("PodDisruptionBudget", "rookery-frontends")?,
        ),
    ] {
        let labels = at(workload, &["spec", "template", "metadata", "labels"]);
        ensure!(labels["role"].as_str() == Some(role) && labels["app"].as_str() == Some("rookery"));
        for selector in [at(workload, &["spec", "selector"]), at(budget, &["spec", "selector"])] {
            ensure!(&selector["matchLabels"] == labels, "another selector: {selector:?}");
        }
        let pod = at(workload, &["spec", "template", "spec"]);
        ensure!(pod["securityContext"]["runAsNonRoot"].as_bool() == Some(true), "{role} may run as root");
        for spread in list(&pod["topologySpreadConstraints"]) {
            ensure!(&spread["labelSelector"]["matchLabels"] == labels, "spreads others: {spread:?}");
        }
        let container = at(pod, &["containers", "0"]);
        let ports: BTreeMap<&str, i64> = list(&container["ports"])
            .iter()
            .filter_map(|port| Some((port["name"].as_str()?, port["containerPort"].as_i64()?)))
            .collect();
        for (probe, path) in [("readinessProbe", "/ready"), ("livenessProbe", "/live")] {
            let asked = &container[probe]["httpGet"];
            ensure!(asked["path"].as_str() == Some(path), "{probe} of {role} asks {asked:?}");
            ensure!(asked["port"].as_str().and_then(|port| ports.get(port)) == Some(&5281), "{asked:?}");
        }
        check_words(&texts(&container["lifecycle"]["preStop"]["exec"]["command"])).await?;
        let restricted = &container["securityContext"];
        ensure!(restricted["allowPrivilegeEscalation"].as_bool() == Some(false));
        ensure!(restricted["readOnlyRootFilesystem"].as_bool() == Some(true));

        // Kubernetes puts in what stands in `$(...)`.
        let mut sets = check_words(&texts(&container["args"])).await?;
        for variable in list(&container["env"]) {
            let name = text(variable, &["name"])?;
            let value = match text(variable, &["valueFrom", "fieldRef", "fieldPath"])? {
                "status.podIP" => "10.1.2.3",
                "metadata.namespace" => "rookery",
                "metadata.name" => "rookery-x-0",
                other => anyhow::bail!("`{other}` is no field that is known here"),
            };
            sets.iter_mut().for_each(|set| *set = set.replace(&format!("$({name})"), value));
        }
        ensure!(!sets.iter().any(|set| set.contains("$(")), "{sets:?}");
        let file = format!("{role}.toml");
        let config = configs.get(&Yaml::String(file.clone())).and_then(Yaml::as_str).context("a config")?;
        std::fs::write(folder.join(&file), config)?;
        check_config(&folder.join(&file), &sets).await?;

        let mounted: BTreeSet<&str> =
            list(&container["volumeMounts"]).iter().filter_map(|mount| mount["name"].as_str()).collect();
        let volumes = list(&pod["volumes"]).iter().filter_map(|volume| volume["name"].as_str());
        let claims = list(&workload["spec"]["volumeClaimTemplates"]).iter();
        let claims = claims.filter_map(|claim| claim["metadata"]["name"].as_str());
        let there: BTreeSet<&str> = volumes.chain(claims).collect();
        ensure!(mounted == there, "{role} mounts {mounted:?}, and has {there:?}");
        // Each file that the config names lies in what is mounted.
        for path in
            config.lines().filter_map(|line| line.split_once(" = \"/etc/rookery/")).map(|(_, rest)| rest)
        {
            let folder = path.split('/').next().unwrap_or_default();
            let mounts =
                list(&container["volumeMounts"]).iter().filter_map(|mount| mount["mountPath"].as_str());
            ensure!(
                mounts.into_iter().any(|m| m == format!("/etc/rookery/{folder}")),
                "nothing holds `{path}`"
            );
        }
        for service in all.iter().filter(|((kind, _), _)| kind == "Service").map(|(_, service)| service) {
            if service["spec"]["selector"]["role"].as_str() == Some(role) {
                ensure!(&service["spec"]["selector"] == labels);
                for port in list(&service["spec"]["ports"]) {
                    let target = port["targetPort"].as_str().context("a named port")?;
                    ensure!(ports.get(target) == port["port"].as_i64().as_ref(), "no port `{target}`");
                }
            }
        }
    }
    let service = one("Service", "rookery-backends")?;
    ensure!(
        service["spec"]["clusterIP"].as_str() == Some("None"),
        "the backends are found by a headless service"
    );
    ensure!(service["spec"]["publishNotReadyAddresses"].as_bool() == Some(true));
    let backends = one("StatefulSet", "rookery-backend")?;
    ensure!(backends["spec"]["serviceName"].as_str() == Some("rookery-backends"));
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}
