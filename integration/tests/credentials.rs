//! Where credentials come from in a cluster: a kubelet that pulls by way of us, and the cluster's pull
//! secrets. There is no cluster here: the kubelet is our CRI client, and of the API server there are the
//! two calls that are made to it, over TLS.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use integration::cri::Cri;
use integration::ctr::{Ctr, Stack};
use integration::hosts::{HostOptions, NativeHost, Service};

/// Reads every file of a container's image to the end; fails after errors.
const READ_ALL: &str = "find / -xdev -type f -exec cat {} + > /dev/null";

const CONFIG: &str = "/etc/xebec/snapshotter.toml";

/// The host of a private registry, and an image there that can be read lazily.
fn host_with_private_image() -> (NativeHost, String) {
    let host = NativeHost::start(HostOptions::with(&[
        Service::Registry,
        Service::PrivateRegistry,
        Service::Snapshotter,
        Service::Containerd,
    ]))
    .unwrap();
    let lazy = host.convert(&host.push("redis").unwrap()).unwrap();
    let private = lazy.replacen(Service::REGISTRY, Service::PRIVATE_REGISTRY, 1);
    (host, private)
}

/// Restarts the daemon with more in its configuration.
fn configure(host: &NativeHost, more: &str) {
    let old = host.read_file(CONFIG).unwrap();
    host.stop(Service::Snapshotter).unwrap();
    host.write_file(CONFIG, old + more).unwrap();
    host.start_services(&[Service::Snapshotter]).unwrap();
}

#[test]
fn a_kubelet_that_pulls_by_way_of_us_tells_the_credentials_and_they_outlive_the_daemon() {
    let (host, image) = host_with_private_image();
    let socket = Service::CONTAINERD_SOCKET;
    configure(&host, &format!("[registry.cri]\nsocket = \"{socket}\"\n"));
    let cri = Cri::connect(&host.path(Service::SNAPSHOTTER_SOCKET)).unwrap();
    let refused = cri.pull_as((Service::USER, "wrong"), &image, "xebec");
    let reason = refused.unwrap_err().to_string();
    assert!(
        reason.contains("401") || reason.contains("authorization"),
        "{reason}"
    );
    cri.pull_as((Service::USER, Service::PASSWORD), &image, "xebec")
        .unwrap();
    let log = host.log(Service::Snapshotter);
    assert!(
        log.contains("lazy layer is ready") && !log.contains(Service::PASSWORD),
        "{log}"
    );

    host.stop(Service::Snapshotter).unwrap();
    host.start_services(&[Service::Snapshotter]).unwrap();
    let mut run = vec!["ctr", "-n", "k8s.io"];
    run.extend(&Stack::XEBEC.run_arguments()[1..]);
    run.extend(["--rm", &image, "c", "sh", "-c", READ_ALL]);
    let read = host.run(&run).unwrap();
    assert!(read.success() && read.stderr.is_empty(), "{read:?}");
}

/// An API server that knows one pull secret.
struct ApiServer {
    secret: Mutex<(u64, String)>,
    changed: Condvar,
}

impl ApiServer {
    const TOKEN: &str = "cluster-t0ken";

    /// Listens at port 6443 of the host, with the certificate of its registries.
    fn start(host: &NativeHost, password: &str) -> Arc<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let certificate = CertificateDer::from_pem_file(host.path("/etc/xebec/registry.pem"));
        let key = PrivateKeyDer::from_pem_file(host.path("/etc/xebec/registry.key"));
        let tls = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.unwrap()], key.unwrap());
        let tls = Arc::new(tls.unwrap());
        let server = Arc::new(Self {
            secret: Mutex::new((1, Self::secret(password))),
            changed: Condvar::new(),
        });
        let listener = host
            .in_network(|| TcpListener::bind("127.0.0.1:6443").unwrap())
            .unwrap();
        let serving = Arc::clone(&server);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (server, tls) = (Arc::clone(&serving), Arc::clone(&tls));
                let connection = ServerConnection::new(tls).unwrap();
                let stream = StreamOwned::new(connection, stream.unwrap());
                // A client that hangs up is no fault of this one.
                thread::spawn(move || server.serve(stream).unwrap_or_default());
            }
        });
        server
    }

    fn secret(password: &str) -> String {
        let encode = |text: String| base64::engine::general_purpose::STANDARD.encode(text);
        let auth = encode(format!("{}:{password}", Service::USER));
        encode(format!(
            r#"{{"auths":{{"https://{}":{{"auth":"{auth}"}}}}}}"#,
            Service::PRIVATE_REGISTRY
        ))
    }

    fn change(&self, password: &str) {
        let mut secret = self.secret.lock().unwrap();
        *secret = (secret.0 + 1, Self::secret(password));
        self.changed.notify_all();
    }

    fn object((version, data): &(u64, String)) -> String {
        format!(
            r#"{{"metadata":{{"namespace":"apps","name":"pull","resourceVersion":"{version}"}},"type":"kubernetes.io/dockerconfigjson","data":{{".dockerconfigjson":"{data}"}}}}"#
        )
    }

    fn serve(&self, stream: StreamOwned<ServerConnection, TcpStream>) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream);
        let answered = self.answer(&mut reader);
        let stream = reader.get_mut();
        stream.conn.send_close_notify();
        stream.flush().and(answered)
    }

    fn answer(
        &self,
        reader: &mut BufReader<StreamOwned<ServerConnection, TcpStream>>,
    ) -> std::io::Result<()> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head)? > 0 {}
        let stream = reader.get_mut();
        let mut say = |status: &str, body: &str| {
            write!(
                stream,
                "HTTP/1.1 {status}\r\nconnection: close\r\n\r\n{body}"
            )?;
            stream.flush()
        };
        if !head.contains(&format!("Bearer {}\r\n", Self::TOKEN)) {
            return say("403 Forbidden", "");
        }
        let ours = head.contains("fieldSelector=type%3Dkubernetes.io%2Fdockerconfigjson&");
        let mut secret = self.secret.lock().unwrap();
        if !head.contains("watch=1") {
            let items = if ours {
                Self::object(&secret)
            } else {
                String::new()
            };
            let version = secret.0;
            drop(secret);
            let body =
                format!(r#"{{"metadata":{{"resourceVersion":"{version}"}},"items":[{items}]}}"#);
            return say("200 OK", &body);
        }
        say("200 OK", "")?;
        let (limit, mut seen) = (Duration::from_mins(1), secret.0);
        loop {
            let same = |secret: &mut (u64, String)| !ours || secret.0 == seen;
            secret = self
                .changed
                .wait_timeout_while(secret, limit, same)
                .unwrap()
                .0;
            if secret.0 == seen {
                return Ok(());
            }
            seen = secret.0;
            writeln!(
                stream,
                r#"{{"type":"MODIFIED","object":{}}}"#,
                Self::object(&secret)
            )?;
            stream.flush()?;
        }
    }
}

#[test]
fn pull_secrets_of_a_cluster_are_used_and_a_change_is_known_at_once() {
    let (host, image) = host_with_private_image();
    let ctr = Ctr::new(&host);
    let api = ApiServer::start(&host, "wrong");
    let kubeconfig = format!(
        "current-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
         clusters: [{{name: k, cluster: {{server: 'https://{}:6443', certificate-authority: ca.pem}}}}]\n\
         users: [{{name: u, user: {{token: {}}}}}]\n",
        Service::TLS_REGISTRY,
        ApiServer::TOKEN
    );
    host.write_file("/etc/xebec/kubeconfig", kubeconfig)
        .unwrap();
    configure(
        &host,
        "[registry.kubernetes]\nkubeconfig = \"/etc/xebec/kubeconfig\"\n",
    );
    let user = format!("{}:{}", Service::USER, Service::PASSWORD);
    let pull = || {
        let mut pull = vec!["images", "pull", "--hosts-dir", "/etc/containerd/certs.d"];
        pull.extend(["--user", &user, "--snapshotter", "xebec", &image]);
        ctr.check(&pull).unwrap();
    };
    pull();
    let log = host.log(Service::Snapshotter);
    assert!(
        log.contains("pull secrets are known") && log.contains("not lazy"),
        "{log}"
    );
    ctr.check(&["images", "rm", "--sync", &image]).unwrap();

    api.change(Service::PASSWORD);
    let begun = Instant::now();
    let is_lazy = || {
        host.log(Service::Snapshotter)
            .contains("lazy layer is ready")
    };
    while !is_lazy() {
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "{}",
            host.log(Service::Snapshotter)
        );
        pull();
        if !is_lazy() {
            ctr.check(&["images", "rm", "--sync", &image]).unwrap();
        }
    }
    let read = ctr
        .run(Stack::XEBEC, &image, "c", &["sh", "-c", READ_ALL])
        .unwrap();
    assert!(read.success() && read.stderr.is_empty(), "{read:?}");
}
