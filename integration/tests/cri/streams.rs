//! What comes and goes between a kubelet and a container beside calls: terminals, input, output,
//! ports and logs.

use std::time::{Duration, Instant};

use integration::cri::Pod;
use integration::leftovers::Inventory;

use super::HANDLERS;
use super::node::{At, Node};

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
    let node = Node::start();
    node.under(HANDLERS[0]).pod_of_streams();
    let before = Inventory::of(&node.host).unwrap();
    for handler in HANDLERS {
        node.under(handler).pod_of_streams();
        let left = before.wait_until_restored(&node.host).unwrap();
        assert!(left.is_empty(), "{handler} left over: {left:#?}");
    }
}

impl At<'_> {
    fn pod_of_streams(&self) {
        let name = format!("streams-{}", self.handler);
        let pod = self.pod(&name, |_| {});
        self.a_process_is_entered(&pod);
        self.who_attaches_may_leave_and_come_back(&pod);
        self.a_log_is_moved_and_no_line_is_lost(&pod, &name);
        self.a_port_is_reached(&pod);
        self.node.cri.stop_pod(&pod).unwrap();
        self.gone(&pod);
        // As a kubelet does.
        let logs = format!("/var/log/pods/{name}");
        self.node.host.check(&["rm", "-r", &logs]).unwrap();
    }

    /// A started container that runs a script and has an input and a log.
    fn start_script(&self, pod: &Pod, name: &str, script: &str, tty: bool) -> String {
        self.start_with(pod, name, &["sh", "-c", script], |config| {
            config.stdin = true;
            config.tty = tty;
            config.log_path = format!("{name}.log");
        })
    }

    fn a_process_is_entered(&self, pod: &Pod) {
        let id = self.start_script(pod, "entered", "sleep 1000", false);
        let script = |script, tty| {
            let streams = self
                .node
                .cri
                .exec(&self.node.host, &id, &["sh", "-c", script], tty);
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
        assert_eq!(
            self.run(&id, ended).1,
            0,
            "whose client has gone still runs"
        );
    }

    fn who_attaches_may_leave_and_come_back(&self, pod: &Pod) {
        for (name, tty) in [("attached", false), ("attached-tty", true)] {
            let id = self.start_script(pod, name, ECHO, tty);
            for word in ["one", "two"] {
                let mut streams = self.node.cri.attach(&self.node.host, &id, tty).unwrap();
                streams.write(&format!("{word}\n")).unwrap();
                streams.read_until(&format!("heard {word}")).unwrap();
                streams.hang_up();
            }
        }
    }

    fn a_log_is_moved_and_no_line_is_lost(&self, pod: &Pod, directory: &str) {
        let id = self.start_script(pod, "count", COUNT, false);
        let path = format!("/var/log/pods/{directory}/count.log");
        let old = format!("{path}.1");
        self.lines(&path);
        self.node.host.check(&["mv", &path, &old]).unwrap();
        self.node.cri.reopen_log(&id).unwrap();
        let new = self.lines(&path);
        self.node.cri.stop(&id, 0).unwrap();
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
        let text = self.node.host.read_file(path).unwrap_or_default();
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
        self.start_script(pod, "server", SERVE, false);
        let deadline = Instant::now() + Duration::from_secs(30);
        let answer = loop {
            let asked = self.node.cri.forward(&self.node.host, pod, 8080);
            match asked.and_then(|mut port| port.read_port_until("pod")) {
                Ok(answer) => break answer,
                // It does not listen yet, or is between two answers.
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        };
        assert!(answer.ends_with("here is the pod\n"), "{answer:?}");
    }
}
