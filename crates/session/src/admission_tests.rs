//! Tables of who may begin when, by a clock that is passed in.

use super::*;

/// Of nobody who waits so far; by numbers in the order in which they come.
fn line(change: impl FnOnce(&mut Limits)) -> (Line<u32>, Instant) {
    let mut limits = Limits::default();
    change(&mut limits);
    let now = Instant::now();
    let lag_max = limits.login_lag().unwrap();
    (Line { lag_max, pace: Pace::new(&limits, now), waiting: VecDeque::new() }, now)
}

const IN_TIME: Duration = Duration::from_micros(100);
const LATE: Duration = Duration::from_millis(20);

/// Who goes in so many beats.
fn beats(line: &mut Line<u32>, now: &mut Instant, count: u32, lag: Duration) -> Vec<u32> {
    let mut gone = Vec::new();
    for _ in 0..count {
        *now += BEAT;
        gone.extend(line.beat(lag, *now));
    }
    gone
}

#[test]
fn who_comes_alone_goes_at_once() {
    let (mut line, mut now) = line(|_| {});
    for _ in 0..100 {
        assert!(line.is_free(now));
        now += Duration::from_millis(6);
    }
}

#[test]
fn of_a_crowd_a_few_go_at_once_and_the_others_in_their_order() {
    let (mut line, mut now) = line(|_| {});
    let at_once = (0..500).filter(|_| line.is_free(now)).count();
    assert_eq!(at_once, BURST as usize);
    line.waiting.extend(0..100);
    assert!(!line.is_free(now + BEAT), "nobody overtakes");
    let gone = beats(&mut line, &mut now, 50, IN_TIME);
    assert_eq!(gone, (0..gone.len() as u32).collect::<Vec<_>>());
    assert!((40..60).contains(&gone.len()), "{}", gone.len());
}

#[test]
fn while_sessions_are_in_time_more_and_more_begin_up_to_the_bound() {
    let (mut line, mut now) = line(|limits| limits.accepts_per_second = 500);
    while line.is_free(now) {}
    line.waiting.extend(0..10_000);
    let (first, second) =
        (beats(&mut line, &mut now, 25, IN_TIME).len(), beats(&mut line, &mut now, 25, IN_TIME).len());
    assert!(second > first, "{first} and {second}");
    beats(&mut line, &mut now, 250, IN_TIME);
    let in_a_second = beats(&mut line, &mut now, 250, IN_TIME).len();
    assert!((490..=501).contains(&in_a_second), "{in_a_second}");
}

#[test]
fn while_sessions_are_late_no_more_begin_than_always_may() {
    let (mut line, mut now) = line(|limits| limits.logins_per_second_min = 50);
    line.waiting.extend(0..10_000);
    beats(&mut line, &mut now, 25, LATE);
    let in_a_second = beats(&mut line, &mut now, 250, LATE).len();
    assert!((49..=51).contains(&in_a_second), "{in_a_second}");
    let back = beats(&mut line, &mut now, 250, IN_TIME).len();
    assert!(back > 100, "{back}");
}

#[test]
fn it_settles_where_few_beats_are_late() {
    let (mut line, mut now) = line(|_| {});
    let mut late = 0;
    for n in 0..5_000 {
        line.waiting.extend(0..10);
        // As if sessions were in time below 300 logins in a second.
        let lag = if line.pace.rate > 300.0 { LATE } else { IN_TIME };
        late += u32::from(n >= 1_000 && lag == LATE);
        beats(&mut line, &mut now, 1, lag);
        line.waiting.clear();
    }
    assert!((200.0..=303.0).contains(&line.pace.rate), "{}", line.pace.rate);
    assert!((50..200).contains(&late), "{late}");
}

#[test]
fn a_turn_of_somebody_who_has_gone_is_the_next_ones() {
    let (mut line, now) = line(|_| {});
    while line.is_free(now) {}
    line.pace.give_back();
    assert!(line.is_free(now) && !line.is_free(now));
}

#[tokio::test]
async fn who_waits_is_counted_and_listeners_wait_for_room() {
    use futures::FutureExt;
    let limits = Limits { logins_waiting: 1, logins_per_second_min: 1_000, ..Limits::default() };
    let admission = Admission::new(&limits, Instant::now());
    while admission.turn().now_or_never().is_some() {}
    // The one that did not come at once has gone again, and waits no more once its turn has come.
    assert_eq!((admission.waiting(), admission.is_full()), (1, true));
    assert!(admission.room().now_or_never().is_none());
    let counters = Counters::default();
    tokio::select! {
        () = admission.room() => {}
        () = admission.give_out(&[], &counters) => {}
    }
    assert_eq!((admission.waiting(), counters.login_waits.value()), (0, 0));
    assert_eq!(admission.rate(), Some(1_000));
}

#[tokio::test]
async fn without_a_bound_all_begin_at_once() {
    use futures::FutureExt;
    let admission = Admission::new(&Limits { login_lag_us: 0, ..Limits::default() }, Instant::now());
    assert!((0..5_000).all(|_| admission.turn().now_or_never().is_some()));
    assert_eq!((admission.waiting(), admission.rate()), (0, None));
}

#[tokio::test]
async fn an_arbiter_is_as_late_as_it_is_slow_to_hear() {
    let epoch = Instant::now();
    let heart = Heart::new(epoch);
    assert_eq!(heart.beat(epoch + Duration::from_millis(1)), Duration::ZERO);
    // Nobody has heard it yet.
    assert_eq!(heart.beat(epoch + Duration::from_millis(6)), Duration::from_millis(5));
    assert_eq!(heart.beat(epoch + Duration::from_secs(1)), Duration::from_millis(999));
    let heard = async {
        while heart.sent.load(Ordering::Acquire) != 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = heart.listen() => {}
        () = heard => {}
    }
    let lag = heart.lag.load(Ordering::Acquire);
    assert_eq!(heart.beat(epoch + Duration::from_secs(2)), Duration::from_nanos(lag));
    assert!(lag < 1_000_000_000);
}
