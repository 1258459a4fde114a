//! What comes and goes between a kubelet and a container beside calls: terminals, input, output,
//! ports and logs.

use std::time::{Duration, Instant};

use integration::cri::{Container, Cri, Pod};
use integration::hosts::{HostOptions, NativeHost, Service};
use integration::leftovers::Inventory;

use super::HANDLERS;

/// Waits for its terminal's new size, answers a line, and ends.
const TERMINAL: &str = "until stty size | grep -q '^40 120'; do sleep 0.1; done; echo fits; \
                        read line; echo \"got $line\"; exit 7";
const ECHO: &str = "while read line; do echo \"heard $line\"; done; sleep 1000";
const COUNT: &str = "while :; do i=$((i+1)); echo line $i; sleep 0.01; done";
const SERVE: &str = "while :; do echo here is the pod | nc -l -p 8080; done";
/// Lines of a log before it is moved, and after.
const LINES: usize = 30;

#[test]
fn a_kubelet_enters_attaches_reaches_ports_and_moves_logs_away() {
    let host = NativeHost::start(HostOptions::default()).expect("a native host starts");
    host.push("pause").unwrap();
    let image = host.push("busybox").unwrap();
    let cri = Cri::connect(&host.path(Service::CONTAINERD_SOCKET)).unwrap();
    for handler in HANDLERS {
        cri.pull(&image, handler).unwrap();
    }
    let at = |handler| At {
        host: &host,
        cri: &cri,
        image: &image,
        handler,
    };
    at(HANDLERS[0]).pod_of_streams();
    let before = Inventory::of(&host).unwrap();
    for handler in HANDLERS {
        at(handler).pod_of_streams();
        let left = before.wait_until_restored(&host).unwrap();
        assert!(left.is_empty(), "{handler} left over: {left:#?}");
    }
}

/// Where the story takes place.
struct At<'a> {
    host: &'a NativeHost,
    cri: &'a Cri,
    image: &'a str,
    handler: &'a str,
}

impl At<'_> {
    fn pod_of_streams(&self) {
        let name = format!("streams-{}", self.handler);
        let pod = self.cri.run_annotated_pod(&name, self.handler, &[]);
        let pod = pod.unwrap();
        self.a_process_is_entered(&pod);
        self.who_attaches_may_leave_and_come_back(&pod);
        self.a_log_is_moved_and_no_line_is_lost(&pod, &name);
        self.a_port_is_reached(&pod);
        self.cri.stop_pod(&pod).unwrap();
        self.cri.remove_pod(&pod).unwrap();
        // As a kubelet does.
        let logs = format!("/var/log/pods/{name}");
        self.host.check(&["rm", "-r", &logs]).unwrap();
    }

    /// A started container that runs a script.
    fn start(&self, pod: &Pod, name: &str, script: &str, tty: bool) -> String {
        let container = Container {
            name,
            image: self.image,
            command: &["sh", "-c", script],
        };
        let id = self.cri.create_with(pod, &container, |config| {
            config.stdin = true;
            config.tty = tty;
            config.log_path = format!("{name}.log");
        });
        let id = id.unwrap();
        self.cri.start(&id).unwrap();
        id
    }

    fn a_process_is_entered(&self, pod: &Pod) {
        let id = self.start(pod, "entered", "sleep 1000", false);
        let script = |script, tty| {
            let streams = self.cri.exec(self.host, &id, &["sh", "-c", script], tty);
            streams.unwrap()
        };

        let mut terminal = script(TERMINAL, true);
        terminal.resize(120, 40).unwrap();
        terminal.read_until("fits").unwrap();
        terminal.write("a word\n").unwrap();
        let ended = terminal.finish().unwrap();
        // The terminal shows what is typed.
        assert!(
            ended.stdout.ends_with("a word\r\ngot a word\r\n"),
            "{ended:?}"
        );
        assert!(ended.status.contains(r#""message":"7""#), "{ended:?}");

        let mut pipes = script("head -n 1; echo aside >&2; exit 3", false);
        pipes.write("a line\n").unwrap();
        let ended = pipes.finish().unwrap();
        assert_eq!((&*ended.stdout, &*ended.stderr), ("a line\n", "aside\n"));
        assert!(ended.status.contains(r#""message":"3""#), "{ended:?}");

        let mut left = script("echo begun; cat", false);
        left.read_until("begun").unwrap();
        left.hang_up();
        let ended =
            "for i in $(seq 100); do ps | grep -q '[c]at$' || exit 0; sleep 0.1; done; exit 1";
        let ran = self.cri.exec_sync(&id, &["sh", "-c", ended]).unwrap();
        assert_eq!(ran.exit_code, 0, "whose client has gone still runs");
    }

    fn who_attaches_may_leave_and_come_back(&self, pod: &Pod) {
        for (name, tty) in [("attached", false), ("attached-tty", true)] {
            let id = self.start(pod, name, ECHO, tty);
            for word in ["one", "two"] {
                let mut streams = self.cri.attach(self.host, &id, tty).unwrap();
                streams.write(&format!("{word}\n")).unwrap();
                streams.read_until(&format!("heard {word}")).unwrap();
                streams.hang_up();
            }
        }
    }

    fn a_log_is_moved_and_no_line_is_lost(&self, pod: &Pod, directory: &str) {
        let id = self.start(pod, "count", COUNT, false);
        let path = format!("/var/log/pods/{directory}/count.log");
        let old = format!("{path}.1");
        self.lines(&path);
        self.host.check(&["mv", &path, &old]).unwrap();
        self.cri.reopen_log(&id).unwrap();
        let new = self.lines(&path);
        self.cri.stop(&id, 0).unwrap();
        let all = [self.read(&old), new].concat();
        let said = all.iter().map(|line| {
            // Time, stream, whether the line is whole, and the line.
            line.splitn(4, ' ').nth(3).unwrap_or(line).to_owned()
        });
        let said: Vec<_> = said.collect();
        let meant: Vec<_> = (1..=said.len()).map(|n| format!("line {n}")).collect();
        assert_eq!(said, meant);
    }

    fn read(&self, path: &str) -> Vec<String> {
        let text = self.host.read_file(path).unwrap_or_default();
        // One that is being written may come yet.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(str::to_owned).collect()
    }

    /// The lines of a log, when there are some.
    fn lines(&self, path: &str) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let lines = self.read(path);
            if lines.len() >= LINES {
                return lines;
            }
            assert!(Instant::now() < deadline, "{path} has {lines:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn a_port_is_reached(&self, pod: &Pod) {
        self.start(pod, "server", SERVE, false);
        let deadline = Instant::now() + Duration::from_secs(30);
        let answer = loop {
            let asked = self.cri.forward(self.host, pod, 8080);
            match asked.and_then(|mut port| port.read_port_until("pod")) {
                Ok(answer) => break answer,
                // It does not listen yet, or is between two answers.
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        };
        assert!(answer.ends_with("here is the pod\n"), "{answer:?}");
    }
}
