//! A real Chromium, told what to do by chromedriver, and what a test asks of a page.

use std::convert::Infallible;
use std::future::Future;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use test_support::PATIENCE;
use thirtyfour::{
    By, ChromeCapabilities, ChromiumLikeCapabilities, DesiredCapabilities, Key,
    LoggingPrefsLogLevel, WebDriver, WebElement,
};

use super::Dashboard;

/// Runs what is to be done in a browser; says so where there is none.
pub fn with_browser<F: Future<Output = ()>>(work: impl FnOnce(Browser) -> F) {
    with(false, work);
}

/// The same with a browser that records what its main thread does.
pub fn with_traced_browser<F: Future<Output = ()>>(work: impl FnOnce(Browser) -> F) {
    with(true, work);
}

fn with<F: Future<Output = ()>>(is_traced: bool, work: impl FnOnce(Browser) -> F) {
    let is_there = |program| Command::new(program).arg("--version").output().is_ok();
    if !is_there("chromedriver") {
        println!("not tried: there is no chromedriver (scripts/setup installs it)");
        return;
    }
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().unwrap();
    runtime.block_on(async {
        let chromedriver = Chromedriver::start();
        let profile = tempfile::tempdir().unwrap();
        let url = format!("http://127.0.0.1:{}", chromedriver.port);
        let driver = WebDriver::new(&url, capabilities(&profile, is_traced))
            .await
            .unwrap();
        let work = async |driver| {
            work(Browser { driver }).await;
            Ok::<_, Infallible>(())
        };
        // The browser ends with it, also when it panics.
        driver.run_and_quit(work).await.unwrap();
    });
}

/// What starts browsers and tells them what to do.
struct Chromedriver {
    process: Child,
    port: u16,
}

impl Chromedriver {
    fn start() -> Self {
        // It takes a free port of IPv4, then the same one of IPv6, and ends where another process has that.
        let started = (0..10).find_map(|_| Self::on_a_free_port());
        started.expect("a chromedriver that listens: above is what each one said")
    }

    fn on_a_free_port() -> Option<Self> {
        let mut process = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(process.stdout.take().unwrap()).lines();
        let port = said.find_map(|line| {
            let line = line.unwrap();
            println!("chromedriver: {line}");
            let (_, port) = line.split_once("successfully on port ")?;
            Some(port.trim_end_matches('.').parse().unwrap())
        });
        let Some(port) = port else {
            process.wait().unwrap();
            return None;
        };
        // Whatever else it says must not fill the pipe.
        std::thread::spawn(move || said.for_each(drop));
        Some(Self { process, port })
    }
}

impl Drop for Chromedriver {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A page in a browser.
pub struct Browser {
    pub driver: WebDriver,
}

impl Browser {
    /// Goes to a dashboard and logs in.
    pub async fn log_in(&self, dashboard: &Dashboard) {
        self.go_to(dashboard).await;
        self.type_token(&dashboard.token()).await;
        self.await_true("document.querySelector('#tiles .tile')")
            .await;
    }

    pub async fn go_to(&self, dashboard: &Dashboard) {
        let url = format!("http://{}/", dashboard.authority());
        self.driver.goto(url).await.unwrap();
    }

    pub async fn type_token(&self, token: &str) {
        let field = self.find("#token").await;
        field.send_keys(token).await.unwrap();
        field.send_keys(Key::Enter + "").await.unwrap();
    }

    /// An element, once it is there.
    pub async fn find(&self, css: &str) -> WebElement {
        self.await_true(&format!("document.querySelector({css:?})"))
            .await;
        self.driver.find(By::Css(css)).await.unwrap()
    }

    /// What an expression gives.
    pub async fn get(&self, expression: &str) -> Value {
        let script = format!("return {expression};");
        let ret = self.driver.execute(script, Vec::new()).await.unwrap();
        ret.json().clone()
    }

    pub async fn text(&self, css: &str) -> String {
        let expression = format!("document.querySelector({css:?})?.textContent ?? ''");
        let text = self.get(&expression);
        text.await.as_str().unwrap().to_owned()
    }

    /// Waits until an expression is true.
    pub async fn await_true(&self, expression: &str) {
        let end = Instant::now() + PATIENCE;
        while self.get(&format!("Boolean({expression})")).await != true {
            let body = self.get("document.body.innerText").await;
            assert!(Instant::now() < end, "never: {expression}\n{body}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until an element has a text in it.
    pub async fn await_text(&self, css: &str, text: &str) {
        let of = format!("document.querySelector({css:?})?.textContent.includes({text:?})");
        self.await_true(&of).await;
    }

    /// Presses keys, one after the other, wherever the focus is.
    pub async fn press(&self, keys: &[Key]) {
        for key in keys {
            let chain = self.driver.action_chain();
            chain.send_keys(key.clone() + "").perform().await.unwrap();
        }
    }

    /// Shows a view by its link.
    pub async fn show(&self, view: &str) {
        let link = self.find(&format!("nav a[href=\"#{view}\"]")).await;
        link.click().await.unwrap();
        let shown = format!("!document.getElementById({view:?}).hidden");
        self.await_true(&shown).await;
    }

    /// A screen of that many CSS pixels, and the scheme that its user prefers.
    pub async fn set_screen(&self, width: u32, height: u32, scheme: &str) {
        let cdp = self.driver.cdp();
        let screen = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 700,
        });
        cdp.send_raw("Emulation.setDeviceMetricsOverride", screen)
            .await
            .unwrap();
        let features = json!({ "features": [
            { "name": "prefers-color-scheme", "value": scheme },
            { "name": "prefers-reduced-motion", "value": "reduce" },
        ] });
        cdp.send_raw("Emulation.setEmulatedMedia", features)
            .await
            .unwrap();
    }

    /// What the page has complained of: errors of its script, and what its policy has refused.
    pub async fn complaints(&self) -> Vec<String> {
        let log = self.driver.browser_log().await.unwrap();
        log.into_iter().map(|entry| entry.message).collect()
    }

    /// Keeps a picture of the page where somebody has asked for them.
    pub async fn keep_picture(&self, name: &str) {
        if let Ok(dir) = std::env::var("SEALDISK_TEST_SCREENSHOTS") {
            let path = std::path::Path::new(&dir).join(format!("{name}.png"));
            self.driver.screenshot(&path).await.unwrap();
        }
    }
}

fn capabilities(profile: &TempDir, is_traced: bool) -> ChromeCapabilities {
    let mut chrome = DesiredCapabilities::chrome();
    let profile = format!("--user-data-dir={}", profile.path().display());
    for argument in [
        "--headless=new",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        // Nothing but this host is asked for anything.
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        &profile,
    ] {
        chrome.add_arg(argument).unwrap();
    }
    if rustix::process::geteuid().is_root() {
        // It refuses to confine itself as root.
        chrome.add_arg("--no-sandbox").unwrap();
    }
    chrome
        .set_browser_log_level(LoggingPrefsLogLevel::All)
        .unwrap();
    if is_traced {
        let trace = json!({
            "traceCategories": "devtools.timeline,disabled-by-default-devtools.timeline",
        });
        chrome
            .add_experimental_option("perfLoggingPrefs", trace)
            .unwrap();
        chrome
            .set_logging_prefs("performance", LoggingPrefsLogLevel::All)
            .unwrap();
    }
    chrome
}
