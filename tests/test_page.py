"""The page at `/`, in a real Chromium.

What must never happen in any of these tests: a violation of the content security policy, a
script error, anything in the browser's console. `browser` looks for it at the end of each.
"""

import json
import os

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from harness.browser import AWAY, DESKTOP, PHONE
from harness.waiting import wait_until


def test_an_event_from_sql_from_http_and_from_its_own_form_all_appear(pg, gateway, browser):
    browser.open(gateway, "?channel=orders")
    pg.publish("orders", '{"from": "sql"}', "inserted")
    browser.wait_rows(1)
    posted = gateway.publish("orders", '{"from": "http"}', "posted")
    browser.wait_rows(2)
    assert browser.publish("orders", '{"from": "form"}', "typed") == "done"
    rows = browser.wait_rows(3)

    assert [row["type"] for row in rows] == ["typed", "posted", "inserted"]
    assert [json.loads(row["data"])["from"] for row in rows] == ["form", "http", "sql"]
    assert rows[1]["id"] == posted
    assert browser.text("#last-id") == rows[0]["id"]
    assert rows[0]["id"] in browser.text("#publish-result")


def test_a_type_nobody_has_heard_of_appears_too(gateway, browser):
    browser.open(gateway)
    types = ["message", "error", "open", "一", "a b", "__proto__"]
    for type_ in types:
        gateway.publish("events", '"x"', type_)
    rows = browser.wait_rows(len(types))
    assert [row["type"] for row in reversed(rows)] == types
    assert [row["shownType"] for row in reversed(rows)] == types


HOSTILE = [
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "</li></ol></main><h1>taken over</h1>",
    "</template><style>body{display:none}</style>",
    "quotes \" ' ` and \\ and &lt;b&gt; &amp;",
    "emoji \U0001f389\U0001f468‍\U0001f469‍\U0001f467, accents é é, ff ﬀ",
    "right to left: שלום عالم ‮override‬",
    "lines\none\r\ntwo\rthree separator paragraph\ttab",
    "{{constructor.constructor('window.hacked = 1')()}} ${window.hacked = 1}",
    "id: 999\nevent: forged\ndata: forged\n\n",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_data_and_types_are_text(pg, gateway, browser, text):
    type_ = "".join(c for c in text if c >= " " and c not in "\u2028\u2029\u007f")[:60]
    browser.open(gateway)
    pg.publish("events", json.dumps(text, ensure_ascii=False), type_)
    row = browser.wait_rows(1)[0]
    assert json.loads(row["data"]) == text
    assert row["type"] == row["shownType"] == type_
    assert len(browser.rows()) == 1
    assert browser.run("return window.hacked") is None
    assert browser.run("return document.querySelectorAll('h1').length") == 1


def test_hostile_channels_are_text(gateway, browser):
    browser.open(gateway, "?channel=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E&channel=a'b%22c")
    shown = browser.run("return [...document.querySelectorAll('#channels li')]"
                        ".map((chip) => chip.dataset.channel)")
    assert shown == ["<img src=x onerror=alert(1)>", "a'b\"c"]
    assert browser.publish("a'b\"c", "1") == "done"
    browser.wait_rows(1)


def test_large_data_is_cut_and_shown_whole_on_demand(gateway, browser):
    browser.open(gateway)
    text = "<b>größer</b>\U0001f389\n" * 5000
    gateway.publish("events", json.dumps(text, ensure_ascii=False))
    row = browser.wait_rows(1)[0]
    assert len(row["data"]) < 1000

    button = browser.find(".event-more")
    assert button.get_attribute("aria-expanded") == "false"
    button.click()
    assert json.loads(browser.rows()[0]["data"]) == text
    assert button.get_attribute("aria-expanded") == "true"
    button.click()
    assert browser.rows()[0]["data"] == row["data"]


def test_data_is_laid_out_without_changing_a_token(gateway, browser):
    data = ('{"big":123456789012345678901234567890,"tiny":1e-400,"one":1.0,'
            '"twice":1,"twice":2,"text":"a, b: {c} [d] \\" \\\\","list":[[],{}]}')
    browser.open(gateway)
    assert browser.publish("events", data) == "done"
    shown = browser.wait_rows(1)[0]["data"]
    pairs = json.loads(shown, object_pairs_hook=list, parse_float=str, parse_int=str)
    assert pairs == json.loads(data, object_pairs_hook=list, parse_float=str, parse_int=str)
    assert "\n" in shown


def test_it_says_reconnecting_when_the_gateway_is_away_and_live_when_it_is_back(
        pg, gateway_factory, browser):
    browser.excused = AWAY
    first = gateway_factory(pg)
    browser.open(first, "?channel=orders")
    first.publish("orders", '"before"')
    browser.wait_rows(1)

    first.stop()
    browser.wait_state("reconnecting")
    assert len(browser.rows()) == 1
    assert browser.publish("orders", '"lost"') == "failed"
    wait_until(lambda: browser.find("#state-detail").is_displayed(), "the reason is shown")

    second = gateway_factory(pg, {"http.listen": f"127.0.0.1:{first.port}"})
    browser.run("document.getElementById('retry').click()")
    browser.wait_state("live")
    assert not browser.find("#state-detail").is_displayed()
    second.publish("orders", '"after"')
    wait_until(lambda: browser.rows()[0]["data"] == '"after"', "the event after the return")


def test_it_comes_back_by_itself(pg, gateway_factory, browser):
    browser.excused = AWAY
    first = gateway_factory(pg, {"stream.retry": "200ms"})
    browser.open(first)
    first.stop()
    browser.wait_state("reconnecting")
    gateway_factory(pg, {"http.listen": f"127.0.0.1:{first.port}"})
    browser.wait_state("live", timeout=45)


def test_a_refused_stream_is_stopped_and_says_why(gateway, browser):
    browser.excused = ("status of 400",)
    browser.driver.get(f"{gateway.url}/?channel={'x' * 300}")
    browser.wait_state("stopped")
    assert "channel" in browser.text("#state-why")
    assert browser.find("#retry").is_displayed()


def test_two_tabs_show_the_same_over_one_stream(gateway, browser):
    browser.open(gateway, "?channel=orders")
    gateway.publish("orders", "1")
    browser.wait_rows(1)
    first = browser.driver.current_window_handle
    browser.driver.switch_to.new_window("tab")
    browser.open(gateway, "?channel=orders")
    second = browser.driver.current_window_handle
    gateway.publish("orders", "2")
    shown = browser.wait_rows(2)
    assert [row["data"] for row in shown] == ["2", "1"]

    browser.driver.switch_to.window(first)
    assert browser.wait_rows(2) == shown
    assert gateway.metric("pgsse_streams") == 1

    browser.driver.close()
    browser.driver.switch_to.window(second)
    gateway.publish("orders", "3")
    browser.wait_rows(3)
    assert gateway.metric("pgsse_streams") == 1


def test_the_stream_ends_with_the_last_tab(gateway, browser):
    browser.open(gateway)
    gateway.wait_metric("pgsse_streams", 1)
    browser.driver.get("about:blank")
    gateway.wait_metric("pgsse_streams", 0)


def test_without_shared_workers_each_page_has_its_own_stream(gateway, browser):
    browser.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument",
                                   {"source": "delete window.SharedWorker;"})
    browser.open(gateway)
    assert browser.run("return typeof SharedWorker") == "undefined"
    gateway.publish("events", "1")
    browser.wait_rows(1)


def test_channels_are_chosen_shared_by_the_address_and_gone_back_to(gateway, browser):
    browser.open(gateway)
    field = browser.find("#channel-add")
    field.send_keys("orders.*, invoices", Keys.ENTER)
    browser.wait_state("live")
    assert browser.driver.current_url.endswith("?channel=events&channel=invoices"
                                               "&channel=orders.*")
    gateway.wait_metric("pgsse_streams", 1)
    gateway.publish("orders.eu", '"by prefix"')
    browser.wait_rows(1)

    browser.find("#channels li[data-channel=events] button").click()
    browser.wait_state("live")
    gateway.wait_metric("pgsse_streams", 1)
    gateway.publish("events", '"not followed"')
    gateway.publish("invoices", '"followed"')
    assert [row["data"] for row in browser.wait_rows(2)] == ['"followed"', '"by prefix"']

    browser.driver.back()
    browser.wait_state("live")
    assert len(browser.driver.find_elements(By.CSS_SELECTOR, "#channels li")) == 3


def test_the_keyboard_alone_publishes(gateway, browser):
    browser.open(gateway, "?channel=orders")
    for _ in range(30):
        if browser.focused() == "publish-type":
            break
        browser.press(Keys.TAB)
    assert browser.focused() == "publish-type"
    browser.press("typed")
    browser.press(Keys.TAB)
    assert browser.focused() == "publish-data"
    browser.press(Keys.CONTROL, "a")
    browser.press(Keys.CONTROL, Keys.NULL)
    browser.write("#publish-data", "")
    browser.press('{"by": "keys"}')
    ActionChains(browser.driver).key_down(Keys.CONTROL).send_keys(Keys.ENTER) \
        .key_up(Keys.CONTROL).perform()
    row = browser.wait_rows(1)[0]
    assert (row["type"], json.loads(row["data"])) == ("typed", {"by": "keys"})


def test_what_is_focused_can_be_seen(gateway, browser):
    browser.open(gateway)
    gateway.publish("events", json.dumps("long " * 1000))
    browser.wait_rows(1)
    browser.run("document.body.focus()")
    seen = []
    for _ in range(40):
        browser.press(Keys.TAB)
        again, name, outline = browser.run("""
            const element = document.activeElement;
            const style = getComputedStyle(element);
            window.seen ??= new Set([document.body]);
            const again = window.seen.has(element);
            window.seen.add(element);
            return [again, element.id || element.className || element.tagName,
                    style.outlineStyle === 'none' ? 0 : parseFloat(style.outlineWidth)]""")
        if again:
            break
        seen.append(name)
        assert outline >= 2, name
    assert {"channel-add", "publish-data", "type-filter", "pause", "clear"} <= set(seen)


def test_data_that_is_no_json_is_explained_and_not_sent(gateway, browser):
    browser.open(gateway)
    browser.write("#publish-data", '{"a": }')
    browser.find("#publish-form button[type=submit]").click()
    assert browser.find("#publish-data").get_attribute("aria-invalid") == "true"
    assert browser.focused() == "publish-data"
    assert "not JSON" in browser.text("#publish-data-error")
    browser.write("#publish-data", '{"a": 1}')
    assert browser.find("#publish-data").get_attribute("aria-invalid") is None
    assert browser.publish("events", '{"a": 1}') == "done"
    assert len(browser.wait_rows(1)) == 1


def test_what_the_gateway_refuses_is_told_in_its_words(gateway, browser):
    browser.excused = ("status of 400",)
    browser.open(gateway)
    assert browser.publish("x" * 300, "1") == "refused"
    assert "channel" in browser.text("#publish-result")


def test_a_paused_list_counts_and_catches_up(gateway, browser):
    browser.open(gateway)
    gateway.publish("events", "1")
    browser.wait_rows(1)
    browser.find("#pause").click()
    for number in (2, 3):
        gateway.publish("events", str(number))
    wait_until(lambda: browser.text("#unseen") == "2 new", "two unseen")
    assert len(browser.rows()) == 1
    browser.find("#pause").click()
    assert [row["data"] for row in browser.rows()] == ["3", "2", "1"]
    browser.find("#clear").click()
    assert browser.rows() == []


def test_types_can_be_filtered(gateway, browser):
    browser.open(gateway)
    for type_ in ("order.created", "order.paid", "ping"):
        gateway.publish("events", "1", type_)
    browser.wait_rows(3)
    browser.write("#type-filter", "order.*")
    assert [row["hidden"] for row in browser.rows()] == [True, False, False]
    gateway.publish("events", "1", "ping")
    assert browser.wait_rows(4)[0]["hidden"]


def test_the_list_is_bounded(gateway, browser):
    browser.open(gateway)
    for _ in range(6):
        events = [{"channel": "events", "data": number} for number in range(200)]
        assert gateway.post(json.dumps(events)).status == 201
    last = gateway.publish("events", '"last"')
    wait_until(lambda: (browser.rows() or [{}])[0].get("id") == last, "the last event")
    assert len(browser.rows()) == 500


def test_nothing_scrolls_sideways_on_a_phone(gateway, browser):
    browser.looks_like(PHONE)
    long_name = "m" * 200
    browser.open(gateway, f"?channel=events&channel={long_name}")
    gateway.publish("events", json.dumps("w" * 3000), long_name)
    gateway.publish("events", json.dumps({"a": {"b": ["c" * 200] * 3}}))
    browser.wait_rows(2)
    browser.find("#publish > summary").click()
    browser.publish("events", '"ok"')
    assert browser.run("return document.documentElement.scrollWidth") <= PHONE[0]
    wide = browser.run("""
        return [...document.querySelectorAll('body *')].filter((element) =>
            element.getBoundingClientRect().right > innerWidth + 1)
            .map((element) => element.id || element.className || element.tagName)""")
    assert wide == []


def luminance_of(browser, selector, what):
    colour = browser.run("return getComputedStyle(document.querySelector(arguments[0]))"
                         "[arguments[1]]", selector, what)
    red, green, blue = (int(part) for part in colour[colour.index("(") + 1:-1].split(",")[:3])
    return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_follows_the_colour_scheme(gateway, browser, dark):
    browser.looks_like(DESKTOP, dark=dark)
    browser.open(gateway)
    ground = luminance_of(browser, "body", "backgroundColor")
    ink = luminance_of(browser, "body", "color")
    assert (ground < 0.2 and ink > 0.8) if dark else (ground > 0.8 and ink < 0.2)


def test_it_moves_nothing_for_those_who_asked_so(gateway, browser):
    browser.looks_like(DESKTOP, reduced_motion=True)
    browser.open(gateway)
    gateway.publish("events", "1")
    browser.wait_rows(1)
    assert browser.run("return document.getAnimations().length") == 0


def test_its_policy_is_strict_and_its_files_are_all_there(gateway, browser):
    browser.open(gateway)
    policy = gateway.get("/").headers["Content-Security-Policy"]
    for part in ("default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"):
        assert part in policy
    assert "unsafe" not in policy
    for name in sorted(os.listdir(os.path.join(os.path.dirname(__file__), "../static"))):
        assert gateway.get(f"/{name}" if name != "index.html" else "/").status == 200, name
