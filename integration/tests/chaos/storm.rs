//! What happens to the daemon, its registry and its disk, and for how long reads may fail of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use integration::ctr::{Ctr, Stack};
use integration::hosts::{NativeHost, Service};
use integration::proxy::Proxy;
use integration::random::Random;

use crate::readers::Report;
use crate::{PATIENCE, ROOT};

/// How long after the end of a trouble the last read may fail of it: a probe of the registry is
/// at most four pauses of half a second away, and the machine is busy.
const AFTERMATH: Duration = Duration::from_secs(5);

/// Troubles of one epoch.
pub(crate) struct Storm<'a> {
    host: &'a NativeHost,
    link: &'a Proxy,
    ctr: Ctr<'a>,
    by_kernel: bool,
    images: &'a [String],
    /// When reads may fail.
    allowed: Vec<(Instant, Instant)>,
    /// How often each trouble came.
    troubles: BTreeMap<&'static str, u32>,
    started: u32,
}

impl<'a> Storm<'a> {
    pub(crate) fn new(
        host: &'a NativeHost,
        link: &'a Proxy,
        mode: &str,
        images: &'a [String],
    ) -> Self {
        Self {
            host,
            link,
            ctr: Ctr::new(host),
            by_kernel: mode == "kernel",
            images,
            allowed: Vec::new(),
            troubles: BTreeMap::new(),
            started: 0,
        }
    }

    /// One trouble after the other; all is well at the end.
    pub(crate) fn rage(&mut self, random: &mut Random, time: Duration) {
        let begun = Instant::now();
        // Once each epoch, at any time, what takes longest.
        let outage = random.below(time.as_millis() as u64 * 2 / 3);
        let mut outage = Some(Duration::from_millis(outage));
        while begun.elapsed() < time {
            std::thread::sleep(random.between(50, 600));
            if outage.is_some_and(|at| at < begun.elapsed()) {
                outage = None;
                self.outage(random);
                continue;
            }
            match random.below(10) {
                0..4 => self.kill(random),
                4 => self.restart(random),
                5 => self.hiccup(random),
                6 => self.cut_in_the_middle(random),
                7 => self.kill_keeper(),
                8 => self.fill_disk(random),
                _ => self.start_another(random),
            }
        }
    }

    fn count(&mut self, trouble: &'static str) {
        *self.troubles.entry(trouble).or_default() += 1;
    }

    /// Reads may fail from `begun` until a while after now.
    fn allow(&mut self, begun: Instant) {
        self.allowed.push((begun, Instant::now() + AFTERMATH));
    }

    fn kill(&mut self, random: &mut Random) {
        self.count("killed");
        self.host.kill(Service::Snapshotter).unwrap();
        std::thread::sleep(random.between(0, 300));
        self.start();
    }

    fn restart(&mut self, random: &mut Random) {
        self.count("restarted");
        self.host.stop(Service::Snapshotter).unwrap();
        std::thread::sleep(random.between(0, 100));
        self.start();
    }

    fn start(&self) {
        let started = self.host.start_services(&[Service::Snapshotter]);
        started.expect("the daemon starts again");
    }

    /// Shorter than what the daemon forgives.
    fn hiccup(&mut self, random: &mut Random) {
        self.count("registry away for a moment");
        self.link.cut();
        std::thread::sleep(random.between(50, PATIENCE * 500));
        self.link.restore();
    }

    fn cut_in_the_middle(&mut self, random: &mut Random) {
        self.count("registry cut in an answer");
        self.link.cut_after(random.below(512 << 10));
        std::thread::sleep(random.between(50, PATIENCE * 500));
        self.link.restore();
    }

    /// Longer than that: with the daemon alive, or killed meanwhile.
    fn outage(&mut self, random: &mut Random) {
        self.count("registry down");
        let begun = Instant::now();
        self.link.cut();
        if random.below(2) == 0 {
            self.kill(random);
        }
        std::thread::sleep(random.between(PATIENCE * 1000, PATIENCE * 2000));
        self.link.restore();
        self.allow(begun);
    }

    /// Never at the same time as the daemon.
    fn kill_keeper(&mut self) {
        self.count("keeper killed");
        let begun = Instant::now();
        let script = "old=$(pgrep -x xebec-keeper); kill -9 $old
                      for i in $(seq 500); do
                          new=$(pgrep -x xebec-keeper || true)
                          [ -n \"$new\" ] && [ \"$new\" != \"$old\" ] && exit; sleep 0.02
                      done; exit 1";
        self.host
            .check_sh(script)
            .expect("the daemon starts another keeper");
        // It may not have everything yet that it is to keep.
        std::thread::sleep(Duration::from_millis(300));
        if self.by_kernel {
            self.allow(begun);
        }
    }

    fn fill_disk(&mut self, random: &mut Random) {
        self.count("disk full");
        let begun = Instant::now();
        let fill = format!(
            "free=$(stat -f -c '%a*%S' {ROOT}); fallocate -l $(($free)) {ROOT}/filler || true
             head -c 64M /dev/zero >> {ROOT}/filler 2> /dev/null || true"
        );
        self.host.check_sh(&fill).unwrap();
        std::thread::sleep(random.between(100, 800));
        if random.below(2) == 0 {
            self.kill_with_full_disk(random);
        }
        self.host.check_sh(&format!("rm {ROOT}/filler")).unwrap();
        self.allow(begun);
    }

    fn kill_with_full_disk(&mut self, random: &mut Random) {
        self.count("killed with a full disk");
        self.host.kill(Service::Snapshotter).unwrap();
        std::thread::sleep(random.between(0, 200));
        self.start();
    }

    /// While everything else goes on; it may fail when the daemon is not there.
    fn start_another(&mut self, random: &mut Random) {
        self.count("containers started");
        let image = &self.images[random.below(self.images.len() as u64) as usize];
        let ran = self
            .ctr
            .run(Stack::XEBEC, image, "another", &["true"])
            .unwrap();
        self.started += u32::from(ran.success());
        assert!(
            ran.success() || self.is_allowed(Instant::now(), Instant::now()),
            "nothing stands in the way of a container: {ran:?}"
        );
    }

    fn is_allowed(&self, begun: Instant, ended: Instant) -> bool {
        let overlaps = |(from, to): &(Instant, Instant)| *from <= ended && begun <= *to;
        self.allowed.iter().any(overlaps)
    }

    pub(crate) fn report(&self, report: &Report) -> String {
        format!(
            "{:?}; {} reads, {} MB, {} got EIO, the longest took {:?}",
            self.troubles,
            report.reads,
            report.bytes >> 20,
            report.faults.len(),
            report.longest
        )
    }

    /// No read has failed but when it may.
    pub(crate) fn judge(&self, report: &Report) {
        let unexcused = |fault: &&crate::readers::Fault| !self.is_allowed(fault.begun, fault.ended);
        let faults = report.faults.iter().filter(unexcused);
        let unexcused: Vec<_> = faults
            .map(|fault| (&fault.what, fault.begun, fault.ended))
            .collect();
        assert!(
            unexcused.is_empty(),
            "reads that must not fail: {unexcused:#?}\nallowed: {:#?}",
            self.allowed
        );
        assert!(
            report.reads > 500,
            "hardly anything was read: {}",
            report.reads
        );
    }

    /// Waits until nothing may fail any more.
    pub(crate) fn wait_for_calm(&self) {
        if let Some(end) = self.allowed.iter().map(|(_, end)| *end).max() {
            std::thread::sleep(end.saturating_duration_since(Instant::now()));
        }
    }

    /// Removes containers and images.
    pub(crate) fn end(&self, containers: &[&str]) {
        for id in containers {
            self.ctr.remove(id).unwrap();
        }
        // A container that could not start may have left its entry or its snapshot.
        let another = "ctr tasks rm -f another; ctr containers rm another
                       ctr snapshots --snapshotter xebec rm another; true";
        self.host.sh(another).unwrap();
        let connected = "for i in $(seq 100); do ctr snapshots --snapshotter xebec ls > /dev/null && exit; sleep 0.1; done; exit 1";
        self.host.check_sh(connected).unwrap();
        for image in self.images {
            self.ctr.check(&["images", "rm", "--sync", image]).unwrap();
        }
        self.host
            .check_sh("xebec-snapshotter status > /dev/null")
            .unwrap();
    }
}
