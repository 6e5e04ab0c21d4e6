"""A real Chromium that looks at the page, and what a test asks of it."""

import shutil
import tempfile

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

from .tools import find_tool
from .waiting import scaled, wait_until

# Without the network ones, Chromium keeps asking its maker's servers; as root it needs
# --no-sandbox.
CHROMIUM_OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--lang=en",
)

DESKTOP = (1280, 860)
PHONE = (360, 780)

# What fetch() leaves in the console when a gateway is away; it cannot be kept from it.
AWAY = ("net::ERR_CONNECTION_REFUSED", "net::ERR_INCOMPLETE_CHUNKED_ENCODING",
        "net::ERR_CONNECTION_RESET", "net::ERR_EMPTY_RESPONSE")


class Browser:
    """One Chromium with a fresh profile; `page` is what the current tab shows."""

    def __init__(self):
        self.profile = tempfile.mkdtemp(prefix="pgsse-chromium-")
        options = webdriver.ChromeOptions()
        options.binary_location = find_tool("chromium")
        for argument in (*CHROMIUM_OPTIONS, f"--user-data-dir={self.profile}"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(service=Service(find_tool("chromedriver")),
                                       options=options)
        self.driver.set_page_load_timeout(scaled(30))
        self.excused = ()
        self.looks_like(DESKTOP)

    def close(self):
        self.driver.quit()
        shutil.rmtree(self.profile, ignore_errors=True)

    def looks_like(self, size, dark=False, reduced_motion=False):
        width, height = size
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": height, "deviceScaleFactor": 1,
            "mobile": width < 500})
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion",
             "value": "reduce" if reduced_motion else "no-preference"}]})

    def console(self):
        lines = [entry["message"] for entry in self.driver.get_log("browser")]
        return [line for line in lines if not any(part in line for part in self.excused)]

    # -- the page -----------------------------------------------------------------------

    def open(self, gateway, query=""):
        # A policy violation is also an event, which no console setting can hide.
        self.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": """
            window.violations = [];
            document.addEventListener('securitypolicyviolation',
                (event) => window.violations.push(event.violatedDirective));"""})
        self.driver.get(f"{gateway.url}/{query}")
        self.wait_state("live")

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def find(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector):
        return self.run("return document.querySelector(arguments[0]).textContent", selector)

    def state(self):
        return self.find("#state").get_attribute("data-state")

    def wait_state(self, state, timeout=30):
        wait_until(lambda: self.state() == state, f"the page is {state}", timeout)

    def rows(self):
        """What the list shows, newest first."""
        return self.run("""
            return [...document.querySelectorAll('#events > li')].map((row) => ({
                id: row.dataset.id, type: row.dataset.type, hidden: row.hidden,
                shownType: row.querySelector('.event-type').textContent,
                data: row.querySelector('.event-data').textContent}))""")

    def wait_rows(self, count, timeout=15):
        return wait_until(lambda: len(self.rows()) >= count and self.rows(),
                          f"{count} events in the list", timeout)

    def write(self, selector, text):
        self.run("""
            const field = document.querySelector(arguments[0]);
            field.value = arguments[1];
            field.dispatchEvent(new Event('input', {bubbles: true}));""", selector, text)

    def publish(self, channel, data, type=""):
        """By the page's own form; what it says became of it."""
        self.write("#publish-channel", channel)
        self.write("#publish-type", type)
        self.write("#publish-data", data)
        self.run("document.querySelector('#publish-result').dataset.outcome = ''")
        self.find("#publish-form button[type=submit]").click()
        return wait_until(self.outcome, "the form tells an outcome")

    def outcome(self):
        outcome = self.find("#publish-result").get_attribute("data-outcome")
        return outcome if outcome not in ("", "busy") else None

    def press(self, *keys):
        ActionChains(self.driver).send_keys(*keys).perform()

    def focused(self):
        return self.run("return document.activeElement.id")
