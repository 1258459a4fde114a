//! Metrics in Prometheus's text format, and the few lines of HTTP that it takes to hand them out.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::store_metrics::StoreFacts;
use crate::error::{Error, Result};
use crate::fetch::{BreakerState, HostHealth};
use crate::fill::counters::{BOUNDS, Histogram, histograms};
use crate::fill::pool::CLASSES;
use crate::mount::{BackgroundInsight, LayerInsight, Lazy, PAUSES};
use crate::store::Limits;

/// A client that sends or reads nothing is dropped after this long.
const PATIENCE: Duration = Duration::from_secs(5);
/// Clients that are served at a time.
const MAX_CLIENTS: usize = 8;
/// Longest request that is read.
const MAX_REQUEST: usize = 8 << 10;

/// Hands out metrics on `address` for ever.
pub(super) async fn serve(address: String, lazy: Option<Arc<Lazy>>, limits: Limits) -> Result<()> {
    let unusable = |error: std::io::Error| Error::Unusable {
        what: format!("metrics.address {address}"),
        reason: error.to_string(),
    };
    let listener = TcpListener::bind(&address).await.map_err(unusable)?;
    let bound = listener.local_addr().map_err(unusable)?;
    tracing::info!(address = %bound, "metrics");
    let clients = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(permit) = Arc::clone(&clients).acquire_owned().await else {
            return Ok(());
        };
        match listener.accept().await {
            Ok((client, _)) => {
                let lazy = lazy.clone();
                tokio::spawn(async move {
                    if let Ok(Err(error)) =
                        tokio::time::timeout(PATIENCE, answer(client, lazy, limits)).await
                    {
                        tracing::debug!(%error, "a client of the metrics went away");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept on the metrics' address");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(
    mut client: TcpStream,
    lazy: Option<Arc<Lazy>>,
    limits: Limits,
) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if client.read_buf(&mut request).await? == 0 || request.len() > MAX_REQUEST {
            return Ok(());
        }
    }
    let (status, body) = match request.as_slice() {
        [b'G', b'E', b'T', b' ', path @ ..] if path.starts_with(b"/metrics ") => {
            let render = move || render(&Facts::gather(lazy.as_deref(), &limits));
            let text = tokio::task::spawn_blocking(render).await;
            ("200 OK", text.map_err(std::io::Error::other)?)
        }
        _ => ("404 Not Found", "metrics are at /metrics\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; version=0.0.4\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    client.write_all(head.as_bytes()).await?;
    client.write_all(body.as_bytes()).await?;
    client.shutdown().await
}

/// Everything that the metrics show.
struct Facts {
    layers: Vec<LayerInsight>,
    hosts: Vec<HostHealth>,
    background: BackgroundInsight,
    times: [Histogram; CLASSES.len()],
    store: Option<StoreFacts>,
}

impl Facts {
    fn gather(lazy: Option<&Lazy>, limits: &Limits) -> Self {
        let store = lazy.map(|lazy| StoreFacts::gather(lazy, limits));
        let store = store.and_then(|store| {
            store
                .inspect_err(|error| tracing::warn!(%error, "measure the store"))
                .ok()
        });
        Self {
            store,
            layers: lazy.map(Lazy::insight).unwrap_or_default(),
            hosts: lazy.map(Lazy::health).unwrap_or_default(),
            background: lazy.map(Lazy::background).unwrap_or_default(),
            times: histograms(),
        }
    }
}

fn render(facts: &Facts) -> String {
    let mut out = String::new();
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    family(&mut out, "build_info", "gauge", "The running version");
    sample(&mut out, "build_info", &version, 1);
    render_layers(&mut out, &facts.layers);
    render_times(&mut out, &facts.times);
    render_background(&mut out, &facts.background);
    if let Some(store) = &facts.store {
        store.render(&mut out);
    }
    family(
        &mut out,
        "registry_state",
        "gauge",
        "0 answers, 1 is probed, 2 does not answer",
    );
    for host in &facts.hosts {
        let state = match host.state {
            BreakerState::Closed => 0,
            BreakerState::HalfOpen => 1,
            BreakerState::Open => 2,
        };
        sample(&mut out, "registry_state", &[("host", &host.host)], state);
    }
    family(
        &mut out,
        "registry_failures",
        "gauge",
        "Requests failed in a row",
    );
    for host in &facts.hosts {
        let failures = u64::from(host.failures);
        sample(
            &mut out,
            "registry_failures",
            &[("host", &host.host)],
            failures,
        );
    }
    family(
        &mut out,
        "registry_wrong_bytes_total",
        "counter",
        "Times that a host sent wrong bytes while others had the right ones",
    );
    for host in &facts.hosts {
        let (labels, wrong) = ([("host", host.host.as_str())], u64::from(host.wrong));
        sample(&mut out, "registry_wrong_bytes_total", &labels, wrong);
    }
    out
}

/// A counter of a layer.
type Show = fn(&LayerInsight) -> u64;

fn render_layers(out: &mut String, layers: &[LayerInsight]) {
    family(
        out,
        "fetched_bytes_total",
        "counter",
        "Packed bytes fetched, by what for",
    );
    for layer in layers {
        for class in CLASSES {
            let labels = [
                ("image", layer.image.as_str()),
                ("layer", &layer.layer),
                ("for", class.name()),
            ];
            let bytes = layer.counts.fetched_for(class);
            sample(out, "fetched_bytes_total", &labels, bytes);
        }
    }
    let counters: [(&str, &str, Show); 4] = [
        (
            "local_reads_total",
            "Reads that needed nothing from the registry",
            |layer| layer.counts.local_reads,
        ),
        (
            "cold_reads_total",
            "Reads that waited for the registry",
            |layer| layer.counts.cold_reads,
        ),
        (
            "verification_failures_total",
            "Pieces whose bytes were wrong",
            |layer| layer.counts.spoilt,
        ),
        (
            "failed_requests_total",
            "Requests for bytes that failed",
            |layer| layer.counts.failed,
        ),
    ];
    for (name, help, show) in counters {
        family(out, name, "counter", help);
        for layer in layers {
            let labels = [("image", layer.image.as_str()), ("layer", &layer.layer)];
            sample(out, name, &labels, show(layer));
        }
    }
}

fn render_times(out: &mut String, times: &[Histogram; CLASSES.len()]) {
    family(
        out,
        "fetch_seconds",
        "histogram",
        "Times of range requests, by what for",
    );
    for (class, times) in CLASSES.into_iter().zip(times) {
        let mut sum = 0;
        let bounds = BOUNDS.iter().map(|bound| (*bound as f64 / 1e3).to_string());
        for (bound, count) in bounds.chain(["+Inf".to_owned()]).zip(times.counts) {
            sum += count;
            let labels = [("for", class.name()), ("le", &bound)];
            sample(out, "fetch_seconds_bucket", &labels, sum);
        }
        let labels = [("for", class.name())];
        let total = times.sum.as_secs_f64();
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "xebec_fetch_seconds_sum{{for=\"{}\"}} {total}",
            class.name()
        );
        sample(out, "fetch_seconds_count", &labels, sum);
    }
}

fn render_background(out: &mut String, background: &BackgroundInsight) {
    let help = "Mounted images that the background fill has not completed";
    family(out, "background_pending", "gauge", help);
    sample(out, "background_pending", &[], background.pending);
    let help = "How often the background fill had to wait, by what for";
    family(out, "background_pauses_total", "counter", help);
    for (pause, count) in PAUSES.into_iter().zip(background.pauses) {
        let labels = [("for", pause.name())];
        sample(out, "background_pauses_total", &labels, count);
    }
}

pub(super) fn family(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(
        out,
        "# HELP xebec_{name} {help}.\n# TYPE xebec_{name} {kind}"
    );
}

pub(super) fn sample(out: &mut String, name: &str, labels: &[(&str, &str)], value: u64) {
    let labels: Vec<_> = labels
        .iter()
        .map(|(name, value)| {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"");
            format!("{name}=\"{}\"", value.replace('\n', "\\n"))
        })
        .collect();
    let labels = match labels.as_slice() {
        [] => String::new(),
        labels => format!("{{{}}}", labels.join(",")),
    };
    let _ = writeln!(out, "xebec_{name}{labels} {value}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fill::counters::Counts;
    use crate::store::Evictions;
    use crate::store::StoreSection;

    #[test]
    fn every_metric_has_its_type_and_labels_are_quoted() {
        let facts = Facts {
            layers: vec![LayerInsight {
                layer: "sha256:1".to_owned(),
                image: "h/a\"b".to_owned(),
                counts: Counts {
                    fetched: [5, 0, 7, 0, 0],
                    spoilt: 3,
                    ..Counts::default()
                },
            }],
            hosts: vec![HostHealth {
                host: "h:5000".to_owned(),
                state: BreakerState::Open,
                failures: 9,
                wrong: 2,
            }],
            background: BackgroundInsight {
                pending: 4,
                pauses: [1, 2, 3],
            },
            times: histograms(),
            store: Some(StoreFacts {
                bytes: 11,
                quota: Some(12),
                free: 13,
                evictions: Evictions {
                    count: 14,
                    bytes: 15,
                },
                seals: Some((16, 17)),
            }),
        };
        let text = render(&facts);
        for line in [
            "xebec_fetched_bytes_total{image=\"h/a\\\"b\",layer=\"sha256:1\",for=\"read\"} 5",
            "xebec_fetched_bytes_total{image=\"h/a\\\"b\",layer=\"sha256:1\",for=\"profile\"} 7",
            "xebec_verification_failures_total{image=\"h/a\\\"b\",layer=\"sha256:1\"} 3",
            "xebec_registry_state{host=\"h:5000\"} 2",
            "xebec_background_pending 4",
            "xebec_background_pauses_total{for=\"space\"} 2",
            "xebec_registry_failures{host=\"h:5000\"} 9",
            "xebec_registry_wrong_bytes_total{host=\"h:5000\"} 2",
            "# TYPE xebec_fetch_seconds histogram",
            "xebec_store_bytes 11",
            "xebec_store_quota_bytes 12",
            "xebec_store_free_bytes 13",
            "xebec_evictions_total 14",
            "xebec_evicted_bytes_total 15",
        ] {
            assert!(text.lines().any(|one| one == line), "{line} in\n{text}");
        }
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            let base = ["_bucket", "_sum", "_count"]
                .into_iter()
                .find_map(|end| name.strip_suffix(end))
                .unwrap_or(name);
            assert!(text.contains(&format!("# TYPE {base} ")), "{line}");
        }
    }

    #[test]
    fn one_path_is_served_and_nothing_else() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let ask = |request: &'static str| {
            runtime.block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let address = listener.local_addr().unwrap();
                let serve = async {
                    let (client, _) = listener.accept().await.unwrap();
                    answer(client, None, (&StoreSection::default()).into())
                        .await
                        .unwrap();
                };
                let ask = async {
                    let mut client = TcpStream::connect(address).await.unwrap();
                    client.write_all(request.as_bytes()).await.unwrap();
                    let mut text = String::new();
                    client.read_to_string(&mut text).await.unwrap();
                    text
                };
                tokio::join!(serve, ask).1
            })
        };
        let metrics = ask("GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n");
        assert!(metrics.starts_with("HTTP/1.1 200 OK\r\n"), "{metrics}");
        assert!(metrics.contains("xebec_build_info{version="), "{metrics}");
        for request in ["GET / HTTP/1.1\r\n\r\n", "PUT /metrics HTTP/1.1\r\n\r\n"] {
            assert!(ask(request).starts_with("HTTP/1.1 404 "));
        }
    }
}
