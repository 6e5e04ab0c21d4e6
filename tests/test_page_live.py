"""The page's watched tables and its jobs, in a real Chromium, with real SQL and real workers."""

import json
import subprocess

import pytest
from selenium.webdriver.common.keys import Keys

from harness.browser import AWAY, DESKTOP, PHONE
from harness.groups import ack, consume, nack, parts
from harness.tools import find_postgres_tool
from harness.waiting import wait_until


def psql(pg, *commands):
    """In psql, as somebody would who sits at another terminal."""
    arguments = [part for command in commands for part in ("-c", command)]
    subprocess.run([find_postgres_tool("psql"), "-qX", "-v", "ON_ERROR_STOP=1", pg.dsn, *arguments],
                   check=True, timeout=60, stdout=subprocess.DEVNULL)


def table(browser, name):
    """The table as the page shows it, newest row on top; None: it does not."""
    return browser.run("""
        const shown = [...document.querySelectorAll('.watched')]
            .find((each) => each.dataset.table === arguments[0]);
        const texts = (row) => [...row.children].map((cell) => cell.textContent);
        return shown === undefined ? null
            : [...shown.querySelectorAll('tr:not(.gone)')].map(texts);""", name)


def wait_table(browser, name, *rows):
    expected = [list(row) for row in rows]
    try:
        wait_until(lambda: table(browser, name) == expected, f"{name} is {expected}")
    except TimeoutError as error:
        raise AssertionError(f"{error}; it is {table(browser, name)}") from None


@pytest.fixture
def guests(pg):
    psql(pg, "CREATE TABLE guests (id bigint PRIMARY KEY, name text, tags json)",
         "SELECT gateway.watch('guests')")


HEADING = ("id", "name", "tags")


def test_a_watched_table_follows_every_change(pg, guests, gateway, browser):
    browser.open(gateway, "?channel=guests")
    assert browser.text("#command-watch") == "SELECT gateway.watch('guests');"
    psql(pg, "INSERT INTO guests VALUES (9007199254740993, 'Ada', '[1.0, {\"a\": 1, \"a\": 2}]')")
    ada = ("9007199254740993", "Ada", '[1.0, {"a": 1, "a": 2}]')
    wait_table(browser, "guests", HEADING, ada)
    assert not browser.find("#tables-none").is_displayed()
    psql(pg, "INSERT INTO guests VALUES (2, '<b>Grace</b>'), (3, 'null')")
    grace, third = ("2", "<b>Grace</b>", "null"), ("3", "null", "null")
    wait_table(browser, "guests", HEADING, third, grace, ada)
    psql(pg, "UPDATE guests SET id = 20, name = 'Grace H.' WHERE id = 2")
    wait_table(browser, "guests", HEADING, third, ("20", "Grace H.", "null"), ada)
    psql(pg, "DELETE FROM guests WHERE id = 3")
    wait_table(browser, "guests", HEADING, ("20", "Grace H.", "null"), ada)
    psql(pg, "ALTER TABLE guests ADD seats int", "UPDATE guests SET seats = 4 WHERE id = 20")
    wait_table(browser, "guests", (*HEADING, "seats"), ("20", "Grace H.", "null", "4"), (*ada, ""))
    psql(pg, "TRUNCATE guests")
    wait_table(browser, "guests", (*HEADING, "seats"))
    wait_until(lambda: browser.text(".row-count") == "0 rows", "no row is counted")


def test_a_table_begins_with_its_newest_changes_in_every_tab(pg, guests, gateway, browser):
    psql(pg, "INSERT INTO guests VALUES (1, 'Ada'), (2, 'Grace')",
         "UPDATE guests SET name = 'Ada L.' WHERE id = 1", "DELETE FROM guests WHERE id = 2")
    rows = (HEADING, ("1", "Ada L.", "null"))
    browser.open(gateway, "?channel=guests")
    wait_table(browser, "guests", *rows)
    assert {row["type"] for row in browser.wait_rows(4)} == {"insert", "update", "delete"}
    browser.driver.switch_to.new_window("tab")
    browser.open(gateway, "?channel=guests")
    wait_table(browser, "guests", *rows)
    assert gateway.metric("pgsse_streams") == 1


def test_tables_begin_anew_when_events_are_missing(pg, guests, gateway_factory, browser):
    browser.excused = AWAY
    first = gateway_factory(pg)
    browser.open(first, "?channel=guests")
    psql(pg, "INSERT INTO guests VALUES (1, 'Ada')")
    wait_table(browser, "guests", HEADING, ("1", "Ada", "null"))
    first.stop()
    browser.wait_state("reconnecting")
    psql(pg, "UPDATE guests SET name = 'Grace'", "SELECT gateway.sweep()",
         "DELETE FROM gateway.events", "INSERT INTO guests VALUES (2, 'Edsger')")

    gateway_factory(pg, {"http.listen": f"127.0.0.1:{first.port}"})
    browser.run("document.getElementById('retry').click()")
    wait_table(browser, "guests", HEADING, ("2", "Edsger", "null"))
    assert browser.text("#notices .reason") == "expired"
    psql(pg, "UPDATE guests SET name = 'Edsger W.' WHERE id = 2")
    wait_table(browser, "guests", HEADING, ("2", "Edsger W.", "null"))


def test_rows_are_told_apart_without_a_key_and_without_their_old_content(pg, gateway, browser):
    psql(pg, "CREATE TABLE twins (a int, b int)", "SELECT gateway.watch('twins')",
         "CREATE TABLE brief (code text, n int)",
         "SELECT gateway.watch('brief', channel => 'twins', old => false)")
    browser.open(gateway, "?channel=twins")
    psql(pg, "INSERT INTO twins VALUES (1, 1), (1, 1), (1, 2)",
         "UPDATE twins SET b = 3 WHERE b = 2", "INSERT INTO brief VALUES ('x', 1), ('y', 1)",
         "UPDATE brief SET n = 2 WHERE code = 'x'")
    wait_table(browser, "twins", ("a", "b"), ("1", "3"), ("1", "1"), ("1", "1"))
    wait_table(browser, "brief", ("code", "n"), ("y", "1"), ("x", "2"))
    psql(pg, "DELETE FROM twins WHERE ctid = (SELECT min(ctid) FROM twins)")
    wait_table(browser, "twins", ("a", "b"), ("1", "3"), ("1", "1"))


def test_only_what_a_watch_publishes_makes_a_table(pg, gateway, browser):
    browser.open(gateway)
    change = {"table": "t", "op": "insert", "new": {"a": 1}, "old": None}
    for broken in ({"op": "delete"}, {"new": None}, {"new": [1]}, {"new": "{}"}, {"table": 7}):
        gateway.publish("events", json.dumps({**change, **broken}), "insert")
    for data in ("1", "[]", "null", '"insert"', "{}"):
        gateway.publish("events", data, "update")
    gateway.publish("events", json.dumps(change), "created")
    browser.wait_rows(11)
    assert browser.find("#tables-none").is_displayed()

    name = "</caption><script>window.hacked = 1</script>"
    gateway.publish("events", json.dumps({**change, "table": name, "new": {name: name}}), "insert")
    wait_table(browser, name, (name,), (name,))
    assert browser.run("return window.hacked") is None


def test_a_table_is_bounded_and_scrolls_by_itself_on_a_phone(pg, gateway, browser):
    browser.looks_like(PHONE)
    columns = ", ".join(f"column_{n} text DEFAULT repeat('w', 200)" for n in range(70))
    psql(pg, f"CREATE TABLE large (id int, {columns})",
         "SELECT gateway.watch('large', channel => 'events')")
    browser.open(gateway)
    psql(pg, "INSERT INTO large SELECT generate_series(1, 130)")
    wait_until(lambda: (table(browser, "large") or [[], [""]])[1][0] == "130", "the last row")
    rows = table(browser, "large")
    assert [len(rows), len(rows[0]), rows[-1][0]] == [101, 50, "31"]
    assert browser.run("return document.documentElement.scrollWidth") <= PHONE[0]
    region = browser.find(".watched")
    browser.run("arguments[0].focus()", region)
    browser.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    wait_until(lambda: browser.run("return arguments[0].scrollLeft", region) > 0, "it scrolls")


# -- jobs -----------------------------------------------------------------------------------


def open_jobs(browser, gateway, query="?channel=other"):
    browser.open(gateway, query)
    browser.find("#job > summary").click()


def send(browser, data):
    browser.write("#job-data", data)
    browser.find("#job-form button[type=submit]").click()


def jobs(browser):
    """What is said of the jobs sent, newest first: (state, detail, result or None)."""
    return browser.run("""
        return [...document.querySelectorAll('#jobs > li')].map((row) => [row.dataset.state,
            row.querySelector('.note').textContent, row.querySelector('.job-result').hidden
                ? null : row.querySelector('.job-result').textContent])""")


def wait_job(browser, state, place=0):
    wait_until(lambda: len(jobs(browser)) > place and jobs(browser)[place][0] == state,
               f"the job is {state}")
    return jobs(browser)[place]


def figures(browser):
    return browser.run("""
        return document.getElementById('group-figures').hidden ? null
            : [...document.querySelectorAll('#group-figures dd')]
                .map((figure) => Number(figure.textContent))""")


def wait_figures(browser, expected):
    wait_until(lambda: figures(browser) == expected, f"the group is {expected}")


def test_a_job_is_sent_and_its_result_comes_back(gateway, browser):
    with consume(gateway) as worker:
        open_jobs(browser, gateway)
        wait_figures(browser, [0, 0, 0, 0])
        send(browser, '{"big": 12345678901234567890, "n": 1.0}')
        got = worker.next_event()
        assert got.data == '{"big": 12345678901234567890, "n": 1.0}'
        wait_job(browser, "delivered")
        wait_figures(browser, [0, 1, 0, 0])
        assert ack(gateway, got.id, result='{"sum": 98765432109876543210}').status == 204
        state, detail, result = wait_job(browser, "acknowledged")
        assert (detail, result) == ("attempt 1", '{"sum": 98765432109876543210}')
        wait_figures(browser, [0, 0, 0, 0])
    assert browser.find("#jobs a").get_attribute("href") == \
        f"{gateway.url}/events/{parts(got.id)[0]}"


def test_a_job_that_fails_too_often_is_dead_and_counted(gateway, browser):
    with consume(gateway, max_attempts=2) as worker:
        open_jobs(browser, gateway)
        send(browser, "1")
        nack(gateway, worker.next_event().id)
        second = worker.next_event()
        wait_until(lambda: jobs(browser)[0][:2] == ["delivered", "attempt 2"], "attempt 2")
        nack(gateway, second.id, reason="no")
        wait_job(browser, "dead")
        wait_figures(browser, [0, 0, 0, 1])


def test_a_newcomer_does_the_work_in_the_page(gateway, browser):
    open_jobs(browser, gateway)
    wait_until(lambda: browser.find("#group-none").is_displayed(), "there is no group yet")
    send(browser, '"too early"')
    wait_job(browser, "waiting")

    browser.excused = ("status of 404",)
    browser.find("#work").click()
    wait_job(browser, "outside")
    send(browser, '"now"')
    delivery = browser.find("#delivery")
    wait_until(delivery.is_displayed, "it is in hand")
    assert browser.text("#delivery-data") == '"now"'
    browser.find("#delivery [data-what=nack]").click()
    wait_until(lambda: "attempt 2" in browser.text("#work-state"), "it comes again")
    browser.find("#delivery [data-what=ack]").click()
    assert wait_job(browser, "acknowledged")[2] == '{"done_by": "the page"}'
    assert not delivery.is_displayed()

    browser.find("#work").click()
    gateway.wait_metric("pgsse_streams", 1)
    assert browser.find("#work").get_attribute("aria-pressed") == "false"


def test_the_worker_says_why_it_cannot_acknowledge(pg, gateway, browser):
    browser.excused = ("status of 409",)
    open_jobs(browser, gateway)
    browser.find("#work").click()
    wait_figures(browser, [0, 0, 0, 0])
    send(browser, "1")
    wait_until(browser.find("#delivery").is_displayed, "it is in hand")
    held = pg.value("SELECT seq || '.' || attempt || '.' || lease FROM gateway.deliveries")
    assert ack(gateway, held).status == 204
    browser.find("#delivery [data-what=ack]").click()
    wait_until(lambda: "not held" in browser.text("#work-state"), "it is told why")


def test_a_job_the_gateway_refuses_is_told_in_its_words(gateway, browser):
    browser.excused = ("status of 400",)
    open_jobs(browser, gateway)
    send(browser, "{")
    assert "not JSON" in browser.text("#job-data-error")
    assert browser.focused() == "job-data"
    browser.write("#job-group", "g" * 300)
    send(browser, "1")
    wait_until(lambda: "group" in browser.text("#job-problem"), "it is told why")
    assert jobs(browser) == []


def test_the_keyboard_alone_sends_a_job_and_does_it(gateway, browser):
    browser.open(gateway, "?channel=other")

    def tab_to(selector):
        there = "return document.activeElement.matches(arguments[0])"
        for _ in range(40):
            if browser.run(there, selector):
                return
            browser.press(Keys.TAB)
        raise AssertionError(f"{selector} is not reached")

    tab_to("#job > summary")
    browser.press(Keys.ENTER)
    tab_to("#work")
    browser.press(Keys.SPACE)
    wait_figures(browser, [0, 0, 0, 0])
    browser.find("#job-channel").send_keys(Keys.ENTER)
    wait_until(browser.find("#delivery").is_displayed, "it is in hand")
    tab_to("#delivery [data-what=ack]")
    browser.press(Keys.ENTER)
    wait_job(browser, "acknowledged")
    assert browser.focused() == "work"


def test_nobody_is_asked_while_the_panel_is_closed(gateway, browser):
    browser.open(gateway)
    asked = "return performance.getEntriesByType('resource')" \
            ".filter((each) => each.name.includes('/groups')).length"
    assert browser.run(asked) == 0
    browser.find("#job > summary").click()
    wait_until(lambda: browser.run(asked) >= 2, "it is asked for again and again")


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_jobs_stay_few_and_inside_the_page(gateway, browser, size):
    browser.looks_like(size)
    with consume(gateway, max=100) as worker:
        open_jobs(browser, gateway)
        for number in range(7):
            send(browser, str(number))
            ack(gateway, worker.next_event().id, result=json.dumps("w" * 5000))
            wait_job(browser, "acknowledged")
    assert len(jobs(browser)) == 5
    assert all(len(result) < 1000 for _, _, result in jobs(browser))
    assert browser.run("return document.documentElement.scrollWidth") <= size[0]
