//! A fleet and its server in virtual time.

use osquery_remote_tls::policy::Chance;

use crate::behaviour::{Behaviour, Call, Connections, MOST_LINES, Outcome, Sending};
use crate::lines::{Batch, LINE_BYTES, Lines};
use crate::measure::{Minute, Record, Second, quantile};
use crate::scenario::{BEFORE, RETRY_AFTER, SLOW, Scenario};
use crate::server::{CONFIG, Condition, Cost, ENROLLMENT, Fate, HANDSHAKE, READ, Reply, Server, log};
use crate::time::{Agenda, Event, Kind, MINUTE, NEVER, SECOND, Tick, length, ticks};

/// Mean lines a second of a host.
const MEAN_LINES: f64 = 0.5;

/// How much the hosts' rates differ: the standard deviation of their logarithm.
const SIGMA: f64 = 1.5;

/// Hosts that log at least this often count for freshness: of others nothing new may have come.
const OFTEN: f64 = 0.1;

/// Servers close a connection that is idle for this time.
const IDLE: Tick = 120 * SECOND;

/// A run ends when all has been as before for this many minutes.
const CALM: usize = 20;

/// A host in virtual time: its lines, and when it does what.
struct Host<B> {
    behaviour: B,
    lines: Lines,
    /// When each kind is due; what the agenda has for another moment is out of date.
    due: [Tick; Kind::COUNT],
    /// How a request ends whose answer is still to come, and when it was made.
    under_way: [Option<(Reply, Tick)>; Kind::COUNT],
    /// Until when each connection is busy, or when it was used last; 0 when there is none. They are shared, or the first
    /// is for reads and the second for configurations.
    used: [Tick; 4],
    has_key: bool,
    /// The server's keys that this host's is one of.
    keys: u32,
    flush: Flush,
    /// What had come at the end of the last flush; not when that has failed.
    sent_until: Option<u32>,
    is_fresh: bool,
    is_away: bool,
}

/// A flush under way.
#[derive(Clone, Default)]
struct Flush {
    /// What came before is sent.
    until: u32,
    /// Bytes of the backlog that may be sent with it, and those that may be sent without using the credit.
    credit: f64,
    free: u64,
    backlog_sent: u64,
    batch: Batch,
}

/// What is the same for all hosts.
struct World {
    now: Tick,
    agenda: Agenda,
    server: Server,
    chance: Chance,
    /// How often the server has forgotten its keys.
    keys: u32,
    record: Record,
    second: Second,
}

/// A fleet and its server.
pub(crate) struct Simulation<B> {
    hosts: Vec<Host<B>>,
    world: World,
    scenario: Scenario,
    end: Tick,
}

impl<B: Behaviour> Simulation<B> {
    /// Hosts that behave like this one, and a server that they keep busy at `load` of what it can do.
    pub(crate) fn new(hosts: usize, behaviour: &B, scenario: Scenario, load: f64, seed: u64) -> Self {
        // What is usual is measured first, with a server that can do anything.
        let endless = Cost { work: f64::INFINITY, bytes: f64::INFINITY };
        let mut usual = Self::with_server(hosts, behaviour, scenario, Server::new(endless), BEFORE, seed);
        usual.run_to(BEFORE);
        let seconds = &usual.world.record.seconds[(BEFORE / 2 / SECOND) as usize..];
        let mean = |value: &dyn Fn(&Second) -> f64| seconds.iter().map(value).sum::<f64>() / seconds.len() as f64;
        let (work, bytes) = (mean(&|second| second.work), mean(&|second| second.bytes));
        let tick = f64::from(SECOND) * load;
        let server = Server::new(Cost { work: work / tick, bytes: bytes / tick });
        let mut simulation = Self::with_server(hosts, behaviour, scenario, server, scenario.end(), seed);
        simulation.world.record.mean_bytes = bytes;
        simulation.world.record.mean_requests = mean(&|second| f64::from(second.requests));
        simulation
    }

    fn with_server(hosts: usize, behaviour: &B, scenario: Scenario, server: Server, end: Tick, seed: u64) -> Self {
        let mut chance = Chance::with_seed(seed);
        let mut agenda = Agenda::new(end);
        let hosts = (0..hosts).map(|id| Host::new(id, behaviour.clone(), &mut agenda, &mut chance)).collect();
        let record = Record { over_at: scenario.over_at(), ..Record::default() };
        let world = World { now: 0, agenda, server, chance, keys: 0, record, second: Second::default() };
        Self { hosts, world, scenario, end }
    }

    /// Runs to the end, or until all is as before.
    ///
    /// # Panics
    /// Lines were lost without being counted.
    pub(crate) fn run(mut self) -> Record {
        while self.world.now < self.end {
            self.run_to((self.world.now + 10 * MINUTE).min(self.end));
            if self.world.record.is_calm(CALM) {
                break;
            }
        }
        let now = self.world.now;
        let lost = self.hosts.iter().filter(|host| !host.lines.are_conserved(now)).count();
        assert_eq!(lost, 0, "lines of {lost} hosts are neither delivered nor waiting nor counted as dropped");
        self.world.record.dropped = self.hosts.iter().map(|host| host.lines.dropped).sum();
        self.world.record
    }

    fn run_to(&mut self, end: Tick) {
        while self.world.now < end {
            self.happen();
            for Event { host, kind } in self.world.agenda.take(self.world.now) {
                let it = &mut self.hosts[host];
                if it.due[kind as usize] == self.world.now {
                    it.due[kind as usize] = NEVER;
                    it.come_due(host, kind, &mut self.world);
                }
            }
            let wait = (self.world.server.wait() / f64::from(SECOND)) as f32;
            self.world.second.wait = self.world.second.wait.max(wait);
            self.world.server.pass();
            self.world.now += 1;
            if self.world.now.is_multiple_of(SECOND) {
                let second = std::mem::take(&mut self.world.second);
                self.world.record.seconds.push(second);
            }
            if self.world.now.is_multiple_of(MINUTE) {
                self.look();
            }
        }
    }

    /// What the scenario has in store for now.
    fn happen(&mut self) {
        let now = self.world.now;
        let server = &mut self.world.server;
        let (begins, ends) = (now == BEFORE, now == self.scenario.over_at());
        match self.scenario {
            Scenario::Down if begins => server.stop(),
            Scenario::Slow if begins => server.condition = Condition::Works(SLOW),
            Scenario::RetryAfter if begins => server.condition = Condition::TurnsAway(RETRY_AFTER),
            Scenario::Down | Scenario::Slow | Scenario::RetryAfter if ends => {
                server.condition = Condition::Works(1.0);
            }
            Scenario::Keys if begins => self.world.keys += 1,
            Scenario::Away if begins || ends => {
                let half = self.hosts.iter_mut().step_by(2);
                half.for_each(|host| host.is_away = begins);
            }
            Scenario::Reboot if begins => {
                for (id, host) in self.hosts.iter_mut().enumerate() {
                    let at = now + self.world.chance.u32(0..5 * MINUTE);
                    host.plan(id, Kind::Reboot, at, &mut self.world);
                }
            }
            _ => {}
        }
        if ends {
            self.hosts.iter_mut().for_each(|host| host.is_fresh = host.lines.a_second() < OFTEN);
        }
    }

    /// Looks at all hosts' lines.
    fn look(&mut self) {
        let now = self.world.now;
        let mut unseen: Vec<Tick> =
            self.hosts.iter().map(|host| host.lines.unseen_since(now).map_or(0, |since| now - since)).collect();
        let seconds = |ticks: Option<Tick>| ticks.unwrap_or(0) as f32 / SECOND as f32;
        let old = |host: &Host<B>| {
            let lines = &host.lines;
            // With no backlog apart, what came before the last minute is one.
            u64::from(lines.waiting(now) - lines.live(now).min(lines.come(now) - lines.come(now - MINUTE)))
        };
        self.world.record.minutes.push(Minute {
            backlog: self.hosts.iter().map(old).sum(),
            unseen_median: seconds(quantile(&mut unseen, 0.5)),
            unseen_most: seconds(quantile(&mut unseen, 0.99)),
        });
    }
}

impl<B: Behaviour> Host<B> {
    fn new(id: usize, behaviour: B, agenda: &mut Agenda, chance: &mut Chance) -> Self {
        let rate = MEAN_LINES * (SIGMA * normal(chance) - SIGMA * SIGMA / 2.0).exp();
        let mut due = [NEVER; Kind::COUNT];
        for (kind, within) in [(Kind::Read, 10), (Kind::Config, 60), (Kind::Log, 10)] {
            let at = chance.u32(0..within * SECOND);
            due[kind as usize] = at;
            agenda.add(at, id, kind);
        }
        Self {
            behaviour,
            lines: Lines::new(rate, chance.f64()),
            due,
            under_way: [None; Kind::COUNT],
            used: [0; 4],
            has_key: true,
            keys: 0,
            flush: Flush::default(),
            sent_until: None,
            is_fresh: true,
            is_away: false,
        }
    }

    fn plan(&mut self, id: usize, kind: Kind, at: Tick, world: &mut World) {
        self.due[kind as usize] = at;
        world.agenda.add(at, id, kind);
    }

    fn come_due(&mut self, id: usize, kind: Kind, world: &mut World) {
        if let Some((reply, asked_at)) = self.under_way[kind as usize].take() {
            return self.answered(id, kind, reply, asked_at, world);
        }
        let now = world.agenda.instant(world.now);
        match kind {
            Kind::Read | Kind::Config => {
                let call = if kind == Kind::Read { Call::Read } else { Call::Config };
                if self.has_key && self.behaviour.asks_server(call, now) {
                    self.request(id, kind, if kind == Kind::Read { READ } else { CONFIG }, world);
                } else {
                    self.call_is_over(id, kind, Outcome::Local, world);
                }
            }
            Kind::Log => self.begin_flush(id, world),
            Kind::Enroll => self.request(id, kind, ENROLLMENT, world),
            Kind::Reboot => self.reboot(id, world),
        }
    }

    /// Makes a request; its answer comes now, or later.
    fn request(&mut self, id: usize, kind: Kind, cost: Cost, world: &mut World) {
        let fate = if self.is_away {
            Fate { after: 0, reply: Reply::Failed { asked: None } }
        } else {
            self.send(kind, cost, world)
        };
        if fate.after == 0 {
            return self.answered(id, kind, fate.reply, world.now, world);
        }
        self.under_way[kind as usize] = Some((fate.reply, world.now));
        self.plan(id, kind, world.now + fate.after, world);
    }

    fn send(&mut self, kind: Kind, cost: Cost, world: &mut World) -> Fate {
        if world.server.condition == Condition::Down {
            self.used = [0; 4];
            return Fate { after: 0, reply: Reply::Failed { asked: None } };
        }
        let is_idle = |used: Tick| used != 0 && used <= world.now && world.now - used < IDLE;
        let (connection, is_open) = match (B::CONNECTIONS, kind) {
            (Connections::Shared, _) => match self.used.iter().position(|&used| is_idle(used)) {
                Some(index) => (Some(index), true),
                // One more, in the place of one that is closed; with all busy, one that is not kept.
                None => (self.used.iter().position(|&used| used <= world.now), false),
            },
            (Connections::Apart, Kind::Read) => (Some(0), is_idle(self.used[0])),
            (Connections::Apart, Kind::Config) => (Some(1), is_idle(self.used[1])),
            (Connections::Apart, _) => (None, false),
        };
        let mut whole = cost;
        if !is_open {
            world.second.handshakes += 1;
            world.server.take(HANDSHAKE);
            whole = whole + HANDSHAKE;
        }
        world.second.requests += 1;
        world.second.work += whole.work;
        world.second.bytes += whole.bytes;
        let knows_key = kind == Kind::Enroll || self.keys == world.keys;
        let fate = world.server.ask(cost, knows_key, ticks(B::CLIENT_TIMEOUT));
        world.second.failed += u32::from(!matches!(fate.reply, Reply::Done | Reply::KeyRejected));
        if let Some(index) = connection {
            self.used[index] = if fate.reply == Reply::GivenUp { 0 } else { (world.now + fate.after).max(1) };
        }
        fate
    }

    fn answered(&mut self, id: usize, kind: Kind, reply: Reply, asked_at: Tick, world: &mut World) {
        let outcome = match reply {
            Reply::Done => Outcome::Done { took: length(world.now - asked_at) },
            Reply::Failed { asked } => Outcome::Failed { asked: asked.map(length) },
            Reply::GivenUp => Outcome::Failed { asked: None },
            Reply::KeyRejected => {
                self.key_rejected(id, world);
                Outcome::Local
            }
        };
        match kind {
            Kind::Read | Kind::Config => self.call_is_over(id, kind, outcome, world),
            Kind::Log => self.request_is_over(id, outcome, world),
            Kind::Enroll => self.enrollment_is_over(id, outcome, world),
            Kind::Reboot => {}
        }
    }

    fn call_is_over(&mut self, id: usize, kind: Kind, outcome: Outcome, world: &mut World) {
        let call = if kind == Kind::Read { Call::Read } else { Call::Config };
        let now = world.agenda.instant(world.now);
        let next = self.behaviour.after_call(call, outcome, now, &mut world.chance);
        self.plan(id, kind, world.now + ticks(next.wait), world);
        if next.works_again {
            self.wake_up(id, world);
        }
    }

    fn wake_up(&mut self, id: usize, world: &mut World) {
        let due = self.due[Kind::Log as usize];
        if due == NEVER || self.under_way[Kind::Log as usize].is_some() {
            return;
        }
        let wait = self.behaviour.wake_up(length(due.saturating_sub(world.now)), &mut world.chance);
        self.plan(id, Kind::Log, world.now + ticks(wait), world);
    }

    fn key_rejected(&mut self, id: usize, world: &mut World) {
        if !self.has_key {
            return;
        }
        self.has_key = false;
        let wait = self.behaviour.before_enrollment(&mut world.chance);
        self.plan(id, Kind::Enroll, world.now + ticks(wait), world);
    }

    fn enrollment_is_over(&mut self, id: usize, outcome: Outcome, world: &mut World) {
        match outcome {
            Outcome::Done { .. } => {
                (self.has_key, self.keys) = (true, world.keys);
                self.wake_up(id, world);
            }
            Outcome::Failed { asked } => {
                let wait = self.behaviour.after_failed_enrollment(asked, &mut world.chance);
                self.plan(id, Kind::Enroll, world.now + ticks(wait), world);
            }
            Outcome::Local => {}
        }
    }

    fn reboot(&mut self, id: usize, world: &mut World) {
        self.used = [0; 4];
        for kind in [Kind::Read, Kind::Config, Kind::Log] {
            // What was under way is lost with the process, and its lines are not.
            self.under_way[kind as usize] = None;
            let wait = if kind == Kind::Log { world.chance.u32(0..10 * SECOND) } else { 0 };
            self.plan(id, kind, world.now + 1 + wait, world);
        }
    }

    fn begin_flush(&mut self, id: usize, world: &mut World) {
        if !self.has_key {
            return self.flush_is_over(id, Outcome::Local, world);
        }
        if let Some(most) = B::MOST_KEPT {
            self.lines.keep(most, world.now);
        }
        if self.behaviour.sending() != Sending::OneRequest {
            self.lines.divide(world.now);
        }
        if self.lines.waiting(world.now) == 0 {
            let at = self.lines.time_of(self.lines.come(world.now));
            return self.plan(id, Kind::Log, at.max(world.now + 1), world);
        }
        let backlog = u64::from(self.lines.in_backlog()) * LINE_BYTES;
        let credit = if backlog == 0 {
            0.0
        } else {
            let came_in = length(self.lines.backlog_took());
            self.behaviour.credit(backlog, came_in, world.agenda.instant(world.now))
        };
        let come = self.lines.come(world.now);
        let free = match (self.behaviour.sending(), self.sent_until) {
            (Sending::InOrder, Some(until)) if backlog > 0 => u64::from(come - until) * LINE_BYTES,
            _ => 0,
        };
        self.flush = Flush { until: come, credit: credit.max(0.0) + free as f64, free, ..Flush::default() };
        self.continue_flush(id, world);
    }

    /// The next request of a flush, or its end.
    fn continue_flush(&mut self, id: usize, world: &mut World) {
        let in_backlog = self.lines.in_backlog();
        let waits = self.behaviour.sending() == Sending::InOrder && in_backlog > 0;
        let new = self.flush.until.saturating_sub(self.lines.come(world.now) - self.lines.live(world.now));
        let live = if waits { 0 } else { new.min(MOST_LINES) };
        let left = self.flush.credit - (self.flush.backlog_sent as f64);
        let affordable = (left / LINE_BYTES as f64).ceil().max(0.0) as u32;
        let backlog = affordable.min(in_backlog).min(MOST_LINES - live);
        self.flush.batch = Batch { live, backlog };
        if live + backlog == 0 {
            return self.flush_is_over(id, Outcome::Done { took: length(0) }, world);
        }
        self.request(id, Kind::Log, log(live + backlog), world);
    }

    fn request_is_over(&mut self, id: usize, outcome: Outcome, world: &mut World) {
        let Outcome::Done { took } = outcome else { return self.flush_is_over(id, outcome, world) };
        let batch = std::mem::take(&mut self.flush.batch);
        self.lines.acknowledge(&batch);
        self.flush.backlog_sent += u64::from(batch.backlog) * LINE_BYTES;
        self.look_whether_fresh(world);
        let is_slow = took > length(2 * SECOND);
        let has_more = self.lines.live(world.now) > 0 || self.lines.in_backlog() > 0;
        if self.behaviour.sending() == Sending::OneRequest || is_slow || !has_more {
            return self.flush_is_over(id, outcome, world);
        }
        self.continue_flush(id, world);
    }

    fn flush_is_over(&mut self, id: usize, outcome: Outcome, world: &mut World) {
        let now = world.agenda.instant(world.now);
        let sent = self.flush.backlog_sent.saturating_sub(self.flush.free);
        let has_backlog = self.lines.in_backlog() > 0;
        self.sent_until = matches!(outcome, Outcome::Done { .. }).then(|| self.lines.come(world.now));
        self.flush = Flush::default();
        let wait = self.behaviour.after_flush(outcome, sent, has_backlog, now, &mut world.chance);
        self.plan(id, Kind::Log, world.now + ticks(wait), world);
    }

    fn look_whether_fresh(&mut self, world: &mut World) {
        let unseen = self.lines.unseen_since(world.now).map_or(0, |since| world.now - since);
        let over_at = world.record.over_at;
        if !self.is_fresh && unseen <= MINUTE && world.now > over_at {
            self.is_fresh = true;
            world.record.fresh.push(world.now - over_at);
        }
    }
}

/// A normal variate.
fn normal(chance: &mut Chance) -> f64 {
    let (one, other) = (1.0 - chance.f64(), chance.f64());
    (-2.0 * one.ln()).sqrt() * (std::f64::consts::TAU * other).cos()
}
