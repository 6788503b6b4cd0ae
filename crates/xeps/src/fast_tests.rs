//! Tests of `fast.rs`, against a whole server in memory.

use futures::executor::block_on;
use hooks::bench::Bench;
use jid::BareJid;

use super::*;

const NONE: &str = "HT-SHA-256-NONE";
const DAY: Duration = Duration::from_secs(DAY_S);

struct Home {
    bench: Bench,
    bearer: Bearer,
}

impl Home {
    fn new(config: Config) -> Home {
        let bench = Bench::new(&["localhost"], move || vec![Arc::new(Fast::new(config.clone()))]);
        bench.account("alice@localhost");
        let bearer = Bearer {
            account: BareJid::new("alice@localhost").unwrap(),
            client: "phone".to_owned(),
            mark: vec![1],
        };
        Home { bench, bearer }
    }

    fn vouching(&self) -> &dyn Vouching {
        self.bench.registry().vouching("localhost").unwrap()
    }

    async fn settle(&self, used: Use) -> Result<Option<Issued>, NotUsed> {
        self.vouching().settle(&self.bearer, &used, &self.bench.services()).await
    }

    /// A token for whoever has given the password.
    async fn request(&self) -> Issued {
        let request = Use { request: Some(NONE.to_owned()), ..Use::default() };
        self.settle(request).await.unwrap().unwrap()
    }

    async fn come_back(&self, token: &Issued) -> Result<Option<Issued>, NotUsed> {
        self.settle(by(token)).await
    }

    /// Keys that a login may be by now.
    async fn good(&self) -> Vec<Vec<u8>> {
        let tokens = self.vouching().tokens(&self.bearer, &self.bench.services()).await.unwrap();
        tokens.into_iter().filter(|token| !token.expired).map(|token| token.key).collect()
    }
}

fn key(token: &Issued) -> Vec<u8> {
    digest::digest(&digest::SHA256, token.token.as_bytes()).as_ref().to_vec()
}

fn by(token: &Issued) -> Use {
    Use { key: Some(key(token)), ..Use::default() }
}

#[test]
fn a_token_holds_for_its_time_and_is_not_kept_as_it_is() {
    block_on(async {
        let home = Home::new(Config::default());
        assert_eq!(home.good().await, Vec::<Vec<u8>>::new());
        let token = home.request().await;
        assert!(token.token.len() > 64, "HMAC takes the hash of it");
        assert_eq!(home.good().await, [key(&token)]);
        home.bench.advance(DAY * 30 - Duration::from_secs(1));
        assert_eq!(home.good().await, [key(&token)]);
        home.bench.advance(Duration::from_secs(1));
        assert_eq!(home.good().await, Vec::<Vec<u8>>::new());
        let services = home.bench.services();
        let all = home.vouching().tokens(&home.bearer, &services).await.unwrap();
        assert!(all.len() == 1 && all[0].expired, "who comes too late learns that");
        assert_eq!(format!("{:?}", all[0]), "Token { mechanism: \"HT-SHA-256-NONE\", .. }");
    });
}

#[test]
fn other_keys_of_the_account_end_it() {
    block_on(async {
        let mut home = Home::new(Config::default());
        let token = home.request().await;
        home.bearer.mark = vec![2];
        assert_eq!(home.good().await, Vec::<Vec<u8>>::new());
        home.bearer.mark = vec![1];
        home.bearer.client = "desk".to_owned();
        assert_eq!(home.good().await, Vec::<Vec<u8>>::new(), "it is another client's");
        home.bearer.client = "phone".to_owned();
        assert_eq!(home.good().await, [key(&token)]);
        let events = Use { request: Some(NONE.to_owned()), ..Use::default() };
        home.settle(events).await.unwrap();
        assert_eq!(home.bench.counted(NAME, "issued"), 2);
    });
}

#[test]
fn a_new_one_comes_in_time_and_the_old_one_holds_until_it_is_used() {
    block_on(async {
        let home = Home::new(Config::default());
        let first = home.request().await;
        assert_eq!(home.come_back(&first).await, Ok(None));
        home.bench.advance(DAY * 7);
        let lost = home.come_back(&first).await.unwrap().expect("it is time");
        assert_eq!(home.good().await, [key(&lost), key(&first)]);
        // It was not heard of: the client comes by the old one again, and the one that was lost is void.
        let second = home.come_back(&first).await.unwrap().expect("still");
        assert_eq!(home.good().await, [key(&second), key(&first)]);
        assert_eq!(home.come_back(&second).await, Ok(None));
        assert_eq!(home.good().await, [key(&second)]);
        assert_eq!(home.come_back(&first).await, Err(NotUsed::Gone));
        assert_eq!(home.come_back(&lost).await, Err(NotUsed::Gone));
    });
}

#[test]
fn a_count_is_used_once() {
    block_on(async {
        let home = Home::new(Config::default());
        let token = home.request().await;
        let with = |count| Use { count: Some(count), ..by(&token) };
        assert_eq!(home.settle(with(3)).await, Ok(None));
        for count in [0, 2, 3] {
            assert_eq!(home.settle(with(count)).await, Err(NotUsed::Gone), "{count}");
        }
        assert_eq!(home.settle(with(4)).await, Ok(None));
        let services = home.bench.services();
        let tokens = home.vouching().tokens(&home.bearer, &services).await.unwrap();
        assert_eq!(tokens[0].count, Some(4));
        // Who gives none has it from a place where nobody could have copied it.
        assert_eq!(home.settle(by(&token)).await, Ok(None));
    });
}

#[test]
fn who_logs_out_has_none_left_unless_it_asks_for_one() {
    block_on(async {
        let home = Home::new(Config { rotate_days: 1, ..Config::default() });
        let token = home.request().await;
        home.bench.advance(DAY * 2);
        assert!(home.come_back(&token).await.unwrap().is_some());
        let out = Use { invalidate: true, ..by(&token) };
        assert_eq!(home.settle(out.clone()).await, Ok(None), "although it is time");
        assert_eq!(home.good().await, Vec::<Vec<u8>>::new());
        assert_eq!(home.settle(out).await, Err(NotUsed::Gone));
        let token = home.request().await;
        let again = Use { invalidate: true, request: Some(NONE.to_owned()), ..by(&token) };
        let new = home.settle(again).await.unwrap().unwrap();
        assert_eq!(home.good().await, [key(&new)]);
    });
}

#[test]
fn so_many_clients_have_tokens_and_the_oldest_goes_for_one_more() {
    block_on(async {
        let mut home = Home::new(Config { clients_max: 2, ..Config::default() });
        let mut issue = async |client: &str| {
            home.bearer.client = client.to_owned();
            home.bench.advance(Duration::from_secs(1));
            home.request().await;
        };
        for client in ["c", "a", "b"] {
            issue(client).await;
        }
        // One that has tokens already is not one more.
        issue("b").await;
        let partition = partition(&home.bearer.account);
        let all = home.bench.store().scan::<Tokens>(&partition, Range::all()).await.unwrap();
        let clients: Vec<_> = all.into_iter().map(|(client, _)| String::from_utf8(client).unwrap()).collect();
        assert_eq!(clients, ["a", "b"]);
        home.bench.remove_account("alice@localhost").await;
        let all = home.bench.store().scan::<Tokens>(&partition, Range::all()).await.unwrap();
        assert!(all.is_empty(), "they go with the account");
    });
}
