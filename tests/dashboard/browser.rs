//! The page as a person has it: logging in, the keyboard, a phone, the dark, and names that mean harm.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use test_support::{Customer, Host};
use thirtyfour::Key;

use super::Dashboard;
use super::answers::insert_named;
use super::pages::{Browser, with_browser};

const MIB: u64 = 1 << 20;

const VIEWS: [&str; 5] = ["overview", "dependencies", "disks", "timeline", "capacity"];

/// Texts of which the contrast with what is behind them is less than WCAG's AA has it.
const FAINT: &str = r"(() => {
  const parse = (text) => (text.match(/[\d.]+/g) ?? []).map(Number);
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const faint = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility() || ['SCRIPT', 'STYLE', 'OPTION'].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const isSvg = element instanceof SVGElement;
    const [one, other] = [parse(isSvg ? style.fill : style.color), ground(element)].map(luminance);
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < 4.5) faint.push(`${element.tagName}.${element.getAttribute('class')} ${element.textContent.slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return faint;
})()";

#[test]
fn a_person_logs_in_and_looks_around() {
    let customer = Customer::new(MIB);
    // What would run if it became HTML, and what would turn the text around it.
    insert_named(&customer, "<img src=x onerror=\"document.title='harm'\">");
    insert_named(&customer, "evil\u{202e}gnp.exe\u{1b}[2J");
    let dashboard = Dashboard::of(&customer);
    with_browser(async |browser| {
        browser.set_screen(1280, 860, "light").await;
        browser.go_to(&dashboard).await;
        assert_eq!(browser.text("main h1").await, "Sealdisk");
        assert_eq!(browser.get(FAINT).await, json!([]), "the form");
        assert_eq!(browser.complaints().await, Vec::<String>::new());
        browser
            .type_token("0123456789012345678901234567890123456789")
            .await;
        browser
            .await_text("[role=alert]", "That is not the token.")
            .await;
        assert_eq!(browser.get("document.cookie").await, "");
        // The browser itself says that the answer to the wrong one was a refusal.
        browser.complaints().await;

        browser.log_in(&dashboard).await;
        assert_eq!(
            browser.get("document.cookie").await,
            "",
            "no script sees it"
        );
        for scheme in ["light", "dark"] {
            browser.set_screen(1280, 860, scheme).await;
            for view in VIEWS {
                browser.show(view).await;
                browser.keep_picture(&format!("{view}-{scheme}")).await;
                assert_eq!(browser.get(FAINT).await, json!([]), "{view} {scheme}");
            }
        }
        let ground = "getComputedStyle(document.body).backgroundColor";
        assert_eq!(browser.get(ground).await, "rgb(14, 18, 23)");

        browser.show("disks").await;
        browser
            .await_text("#disk-list", "<img src=x onerror=")
            .await;
        browser
            .await_text("#disk-list", "evil\\u{202e}gnp.exe\\u{1b}")
            .await;
        assert_eq!(
            browser
                .get("document.querySelectorAll('main img').length")
                .await,
            0
        );
        assert_eq!(browser.get("document.title").await, "Disks – Sealdisk");

        assert_phone(&browser).await;
        assert_eq!(browser.complaints().await, Vec::<String>::new());

        let log_out = browser.find(".top form button").await;
        log_out.click().await.unwrap();
        browser.await_true("document.querySelector('#token')").await;
    });
}

/// 375 CSS pixels are enough, and what is to be touched is large enough.
async fn assert_phone(browser: &Browser) {
    browser.set_screen(375, 812, "light").await;
    for view in VIEWS {
        browser.show(view).await;
        browser.keep_picture(&format!("{view}-phone")).await;
        let wide = browser.get("document.documentElement.scrollWidth").await;
        assert_eq!(wide, 375, "{view}");
        let small = browser
            .get(
                "[...document.querySelectorAll('button.button, button.chip, input, select, nav a')]\
                 .filter((one) => one.checkVisibility() && one.getBoundingClientRect().height < 36)\
                 .map((one) => one.outerHTML)",
            )
            .await;
        assert_eq!(small, json!([]), "{view}");
    }
}

#[test]
fn what_if_is_asked_by_keyboard_and_a_revoked_key_shows() {
    let customer = Customer::new(16 * MIB);
    let daemon = customer.attach(&["--key-check-interval", "1"]);
    let dashboard = Dashboard::of(&customer);
    with_browser(async |browser| {
        browser.set_screen(1280, 860, "light").await;
        browser.log_in(&dashboard).await;
        rates_move_under_load(&browser, &daemon).await;

        browser.show("dependencies").await;
        browser.await_text("#picture", "1 served").await;
        // From the tools into the picture, to the key, and to its version.
        browser
            .get("document.getElementById('as-table').focus()")
            .await;
        browser.press(&[Key::Tab]).await;
        let focused = "document.activeElement.getAttribute('data-node') ?? ''";
        browser
            .await_true(&format!("{focused}.startsWith('vault:')"))
            .await;
        let is_seen = "getComputedStyle(document.activeElement.querySelector('.hit')).strokeWidth";
        assert_eq!(browser.get(is_seen).await, "2px", "the focus is seen");
        walk_to(&browser, "vault:customer", Key::Down).await;
        browser.press(&[Key::Right]).await;
        browser
            .await_true(&format!("{focused}.startsWith('key:')"))
            .await;
        browser.press(&[Key::Down, Key::Enter]).await;
        browser
            .await_text("#what-if .verdict", "1 disk in use would stop")
            .await;
        browser
            .await_text("#what-if", "Stop at their next key check (1)")
            .await;
        browser
            .await_true("document.querySelector('#picture [data-cut]')")
            .await;
        browser.keep_picture("what-if").await;
        browser.press(&[Key::Escape]).await;
        browser
            .await_true("!document.querySelector('#what-if .verdict')")
            .await;
        for (node, column) in [("vault:customer", Key::Left), ("identity:set", Key::Right)] {
            browser.press(&[column.clone(), column]).await;
            walk_to(&browser, node, Key::Down).await;
            browser.press(&[Key::Enter]).await;
            browser
                .await_text("#what-if .verdict", "1 disk in use would stop")
                .await;
            browser.press(&[Key::Escape]).await;
        }

        customer.enable(false);
        browser.await_text("#picture", "1 key revoked").await;
        browser.await_text("#picture", "disabled").await;
        browser.await_text("#standing", "critical").await;
        browser.show("disks").await;
        browser
            .await_text("#disk-list .list-row[data-row='0']", "key revoked")
            .await;
        browser.show("timeline").await;
        browser.await_text("#timeline-list", "DEK Destroy").await;
        browser.await_text("#timeline-list", "Key Update").await;
        browser.await_text("#logs", "intact").await;
        let verified = "document.querySelector('#timeline-list .c-record [data-tone=good]')";
        browser.await_true(verified).await;
        browser.keep_picture("timeline-revoked").await;

        customer.enable(true);
        browser.show("disks").await;
        browser
            .await_text("#disk-list .list-row[data-row='0']", "served")
            .await;

        let db = rusqlite::Connection::open(customer.vault().join("vault.db")).unwrap();
        db.execute("UPDATE audit SET caller = 'mallory' WHERE seq = 2", [])
            .unwrap();
        browser.show("timeline").await;
        browser
            .await_text("#logs [data-tone=bad]", "vault/customer")
            .await;
        browser.await_text("#logs [data-tone=bad]", "broken").await;
        browser.await_text("#standing", "1 audit log broken").await;
        let untrusted = "document.querySelector('#timeline-list .c-record [data-tone=bad]')";
        browser.await_true(untrusted).await;
        assert_eq!(browser.complaints().await, Vec::<String>::new());
    });
}

/// Presses a key until a node has the focus.
async fn walk_to(browser: &Browser, node: &str, key: Key) {
    for _ in 0..10 {
        let focused = browser
            .get("document.activeElement.getAttribute('data-node')")
            .await;
        if focused == node {
            return;
        }
        browser.press(std::slice::from_ref(&key)).await;
    }
    panic!("{node} is not to be reached");
}

async fn rates_move_under_load(browser: &Browser, daemon: &test_support::Daemon) {
    let mut frontend = daemon.connect();
    let is_over = Arc::new(AtomicBool::new(false));
    let over = is_over.clone();
    let load = std::thread::spawn(move || {
        let queue = &mut frontend.queues[0];
        while !over.load(Ordering::Relaxed) {
            for sector in 0..256 {
                queue.write(8 * sector, &[7; 4096]).unwrap();
            }
        }
    });
    browser.await_text("#busy", "disk").await;
    let drawn =
        "(document.querySelector('#busy .spark-line').getAttribute('d') ?? '').includes('L')";
    browser.await_true(drawn).await;
    browser.await_text("#plot-bytes .readout", "B/s").await;
    browser.await_text("#plot-latency .readout", "s").await;
    is_over.store(true, Ordering::Relaxed);
    load.join().unwrap();
    browser.await_text("#busy", "No disk is busy.").await;
}

/// The table says what the picture says, and lists can be walked through by keys.
#[test]
fn there_is_a_table_beside_the_picture() {
    let customer = Customer::new(MIB);
    let dashboard = Dashboard::of(&customer);
    with_browser(async |browser| {
        browser.set_screen(1280, 860, "light").await;
        browser.log_in(&dashboard).await;
        browser.show("dependencies").await;
        browser.await_text("#picture", "unattached").await;
        let chip = browser.find("#as-table").await;
        chip.click().await.unwrap();
        for text in ["set", "may unwrap", "key", "customer", "1 unattached"] {
            browser.await_text("#picture-table", text).await;
        }
        browser.get("[...document.querySelectorAll('#picture-table .link')].find((one) => one.textContent.includes('latest')).focus()").await;
        browser.press(&[Key::Enter]).await;
        browser
            .await_text("#what-if .verdict", "Nothing in use would stop; 1")
            .await;
        let landmarks = browser
            .get("['header', 'nav', 'main', 'h1'].map((tag) => document.querySelectorAll(tag).length > 0)")
            .await;
        assert_eq!(landmarks, json!([true, true, true, true]));
        let unnamed: Value = browser
            .get(
                "[...document.querySelectorAll('button, a, input, select, [role=button], [role=img]')]\
                 .filter((one) => !(one.textContent.trim() || one.getAttribute('aria-label') || one.labels?.length))\
                 .map((one) => one.outerHTML)",
            )
            .await;
        assert_eq!(unnamed, json!([]));
        browser.show("disks").await;
        browser
            .get("document.querySelector('#disk-list .list-scroll').focus()")
            .await;
        browser.press(&[Key::End, Key::Enter]).await;
        browser.await_text("#disk-panel", "enabled").await;
        browser.press(&[Key::Escape]).await;
        browser
            .await_true("document.querySelector('#disk-panel').hidden")
            .await;
        assert_eq!(browser.complaints().await, Vec::<String>::new());
    });
    // Nobody looks any more.
    let host: &Host = &customer;
    assert!(host.state().exists());
}
