/*
 * main.c - the command line.
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "config.h"
#include "dsn.h"
#include "healthcheck.h"
#include "log.h"
#include "migrate.h"
#include "page.h"
#include "relay.h"
#include "serve.h"
#include "service.h"
#include "sockets.h"

#ifndef PGSSE_VERSION
#define PGSSE_VERSION "unknown"
#endif

#define HEALTHCHECK_USEC (3 * USEC_PER_SEC)

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

static const char help_text[] =
    "pg-sse-gateway: what happens in PostgreSQL, as Server-Sent Events over HTTP.\n"
    "\n"
    "Usage: pg-sse-gateway [OPTION...] [COMMAND]\n"
    "\n"
    "Commands:\n"
    "  serve                     run the gateway (the default)\n"
    "  migrate [up|down|status]  apply the migrations that are missing (the default),\n"
    "                            take the newest one back, or list them\n"
    "  check-config              check the configuration and print the effective "
    "settings\n"
    "  healthcheck               exit 0 if the gateway on this machine is ready\n"
    "\n"
    "Options:\n"
    "  -c, --config FILE         read this ini file\n"
    "  -s, --set SECTION.KEY=VALUE\n"
    "                            set one setting; may be repeated\n"
    "  -V, --version             print the version\n"
    "  -h, --help                print this\n"
    "\n"
    "[channels] relay names the channels whose NOTIFYs go to subscribers; none by "
    "default.\n"
    "They come in the order of the commits, or about so with relay_order = near.\n"
    "Settings: command line over environment (PGSSE_SECTION_KEY, DATABASE_URL) over the\n"
    "ini file over the built-in default. gateway.ini lists them all with their reasons.\n"
    "\n"
    "Exit status: 0 done; 1 failed while running; 2 wrong command line or "
    "configuration.\n";

static int usage(const char *complaint, const char *what)
{
    (void)fprintf(stderr, "pg-sse-gateway: %s%s; see pg-sse-gateway --help\n", complaint,
                  what);
    return EXIT_USAGE;
}

static int failed(const struct err *err)
{
    log_error("%s", err->text);
    return EXIT_FAILED;
}

static int run_serve(const struct config *config)
{
    struct err err;

    const int result = serve_run(config, &err);
    if (result < 0)
        (void)failed(&err);
    /* What stands in [http] listen is only understood when it is opened. */
    return result == -EINVAL ? EXIT_USAGE : result < 0 ? EXIT_FAILED : EXIT_DONE;
}

static int run_migrate(const struct config *config, const char *direction)
{
    const struct migrate_settings settings = {
        .dsn = config->database.dsn,
        .password = config->database.password,
        .dir = config->database.migrations_dir,
        .stop_fd = -1,
    };
    struct err err;
    int result;

    if (direction == NULL || strcmp(direction, "up") == 0)
        result = migrate_up(&settings, stdout, &err);
    else if (strcmp(direction, "down") == 0)
        result = migrate_down(&settings, stdout, &err);
    else if (strcmp(direction, "status") == 0)
        result = migrate_status(&settings, stdout, &err);
    else
        return usage("migrate up, down or status, not ", direction);
    return result < 0 ? failed(&err) : EXIT_DONE;
}

/* What only the rooms that use a setting can tell of it. */
static int check_values(const struct config *config, struct err *err)
{
    int result = sockets_check(config->http.listen, err);

    if (result < 0)
        return config_blame(config, "http", "listen", result, err);
    result = dsn_check(config->database.dsn, err);
    if (result < 0)
        return config_blame(config, "database", "dsn", result, err);
    result = dsn_check(config->database.listen_dsn, err);
    if (result < 0)
        return config_blame(config, "database", "listen_dsn", result, err);

    result = relay_check(config->channels.relay, err);
    if (result < 0)
        return config_blame(config, "channels", "relay", result, err);

    struct page *page = page_new(config->http.static_dir, err);
    if (page == NULL)
        return -EINVAL;
    page_free(page);
    return 0;
}

static int run_check_config(const struct config *config)
{
    struct err err;

    if (check_values(config, &err) < 0) {
        (void)fprintf(stderr, "pg-sse-gateway: %s\n", err.text);
        return EXIT_USAGE;
    }
    if (config_print(config, stdout) < 0 || fflush(stdout) != 0) {
        log_error("could not print the settings: %s", strerror(errno));
        return EXIT_FAILED;
    }
    return EXIT_DONE;
}

static int run_healthcheck(const struct config *config)
{
    char text[512];
    struct err err;

    if (healthcheck_run(config->http.listen, HEALTHCHECK_USEC, text, sizeof(text), &err) <
        0)
        return failed(&err);
    return EXIT_DONE;
}

static int run_command(const struct config *config, char *const words[], int count)
{
    const char *command = count > 0 ? words[0] : "serve";
    const bool is_migrate = strcmp(command, "migrate") == 0;

    if (count > (is_migrate ? 2 : 1))
        return usage("one word too many: ", words[is_migrate ? 2 : 1]);
    if (is_migrate)
        return run_migrate(config, count > 1 ? words[1] : NULL);
    if (strcmp(command, "serve") == 0)
        return run_serve(config);
    if (strcmp(command, "check-config") == 0)
        return run_check_config(config);
    if (strcmp(command, "healthcheck") == 0)
        return run_healthcheck(config);
    return usage("unknown command ", command);
}

/* What getopt() stumbled over is the word before the next, or a letter of one. */
static int complain_of_option(int option, char *const argv[])
{
    const char letter[] = {'-', (char)optopt, '\0'};
    const char *word = argv[optind - 1];
    const bool is_long = strncmp(word, "--", 2) == 0;

    if (option == ':')
        return usage("this option needs a value: ", is_long ? word : letter);
    if (is_long && optopt != 0)
        return usage("this option takes no value: ", word);
    return usage("unknown option ", optopt == 0 ? word : letter);
}

/* -1: go on; otherwise the exit status. */
static int read_options(int argc, char *argv[], struct config *config,
                        const char **ret_file)
{
    static const struct option options[] = {
        {"config", required_argument, NULL, 'c'},
        {"set", required_argument, NULL, 's'},
        {"version", no_argument, NULL, 'V'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    struct err err;

    opterr = 0;
    for (int option;
         (option = getopt_long(argc, argv, ":c:s:Vh", options, NULL)) != -1;) {
        switch (option) {
        case 'c':
            *ret_file = optarg;
            break;
        case 's':
            if (config_set(config, optarg, &err) < 0)
                return usage("", err.text);
            break;
        case 'V':
            (void)puts("pg-sse-gateway " PGSSE_VERSION);
            return EXIT_DONE;
        case 'h':
            (void)fputs(help_text, stdout);
            return EXIT_DONE;
        default:
            return complain_of_option(option, argv);
        }
    }
    return -1;
}

int main(int argc, char *argv[])
{
    const char *file = NULL;
    struct err err;
    struct config *config = config_new();

    if (config == NULL)
        return usage("no memory", "");

    int status = read_options(argc, argv, config, &file);
    if (status < 0 && config_load(config, file, environ, &err) < 0) {
        (void)fprintf(stderr, "pg-sse-gateway: %s\n", err.text);
        status = EXIT_USAGE;
    }
    if (status < 0) {
        log_set_level(config->log.level);
        (void)service_log_to_journal();
        status = run_command(config, argv + optind, argc - optind);
    }
    config_free(config);
    return status;
}
