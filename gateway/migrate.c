/*
 * migrate.c - the files of migrations/: up, down, status.
 */
#include "migrate.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>

#include "buf.h"
#include "clock.h"
#include "database.h"
#include "sqlfile.h"

#define NUMBER_DIGITS 4
#define NUMBER_MAX    9999

#define CONNECT_USEC   (10 * USEC_PER_SEC)
#define STATEMENT_USEC (30 * USEC_PER_SEC)
#define LOCK_USEC      (60 * USEC_PER_SEC)

struct migration {
    char *name; /* between the number and ".up.sql"; NULL: no file has this number */
    bool up, down;
};

struct run {
    const struct migrate_settings *settings;
    struct database *database;
    FILE *out;                    /* may be NULL */
    struct migration *migrations; /* number N at N - 1 */
    long count;
    long applied; /* how many the database has, as of the last read_applied() */
};

/* ---- the folder ---- */

static void free_migrations(struct run *run)
{
    for (long i = 0; i < run->count; i++)
        free(run->migrations[i].name);
    free(run->migrations);
    run->migrations = NULL;
    run->count = 0;
}

static int grow(struct run *run, long count)
{
    struct migration *more =
        reallocarray(run->migrations, (size_t)count, sizeof(run->migrations[0]));

    if (more == NULL)
        return -ENOMEM;
    memset(more + run->count, 0, (size_t)(count - run->count) * sizeof(more[0]));
    run->migrations = more;
    run->count = count;
    return 0;
}

/* The number at the beginning of "NNNN_name...": 0 if there is none. */
static long file_number(const char *file)
{
    long number = 0;

    for (int i = 0; i < NUMBER_DIGITS; i++) {
        if (file[i] < '0' || file[i] > '9')
            return 0;
        number = number * 10 + (file[i] - '0');
    }
    return file[NUMBER_DIGITS] == '_' ? number : 0;
}

static bool ends_with(const char *text, const char *end)
{
    size_t len = strlen(text), end_len = strlen(end);

    return len > end_len && strcmp(text + len - end_len, end) == 0;
}

static int add_file(struct run *run, const char *file, struct err *err)
{
    const char *dir = run->settings->dir;
    bool up = ends_with(file, ".up.sql");
    size_t end_len = strlen(up ? ".up.sql" : ".down.sql");
    long number = file_number(file);
    size_t len = strlen(file);

    if ((!up && !ends_with(file, ".down.sql")) || number < 1 || number > NUMBER_MAX ||
        len <= NUMBER_DIGITS + 1 + end_len)
        return err_set(err, -EINVAL,
                       "%s/%s: a migration is called NNNN_name.up.sql or "
                       "NNNN_name.down.sql, counting from 0001",
                       dir, file);
    if (number > run->count && grow(run, number) < 0)
        return err_set(err, -ENOMEM, "no memory for the list of migrations");

    struct migration *migration = &run->migrations[number - 1];
    const char *name = file + NUMBER_DIGITS + 1;
    size_t name_len = len - NUMBER_DIGITS - 1 - end_len;
    if (migration->name == NULL)
        migration->name = strndup(name, name_len);
    if (migration->name == NULL)
        return err_set(err, -ENOMEM, "no memory for the list of migrations");
    if (strlen(migration->name) != name_len ||
        memcmp(migration->name, name, name_len) != 0)
        return err_set(err, -EINVAL, "%s: number %04ld is given twice: %s and %.*s", dir,
                       number, migration->name, (int)name_len, name);
    migration->up = migration->up || up;
    migration->down = migration->down || !up;
    return 0;
}

static int check_folder(const struct run *run, struct err *err)
{
    const char *dir = run->settings->dir;

    if (run->count == 0)
        return err_set(err, -EINVAL, "%s: there are no migrations", dir);
    for (long i = 0; i < run->count; i++) {
        const struct migration *migration = &run->migrations[i];
        if (migration->name == NULL)
            return err_set(err, -EINVAL, "%s: number %04ld is missing", dir, i + 1);
        if (!migration->up || !migration->down)
            return err_set(err, -EINVAL, "%s: %04ld_%s.%s.sql is missing", dir, i + 1,
                           migration->name, migration->up ? "down" : "up");
    }
    return 0;
}

static void close_dir(DIR **dir)
{
    if (*dir != NULL)
        closedir(*dir);
}

static int read_folder(struct run *run, struct err *err)
{
    CLEANUP(close_dir) DIR *dir = opendir(run->settings->dir);

    if (dir == NULL)
        return err_set(err, -EINVAL, "could not read the migrations in %s: %s",
                       run->settings->dir, strerror(errno));
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        /* Beside the files there may be others, an editor's among them. */
        if (entry->d_name[0] == '.' || !ends_with(entry->d_name, ".sql"))
            continue;
        int r = add_file(run, entry->d_name, err);
        if (r < 0)
            return r;
    }
    return check_folder(run, err);
}

static void close_file(FILE **file)
{
    if (*file != NULL)
        fclose(*file);
}

static int read_file(const char *path, struct buf *ret_text, struct err *err)
{
    CLEANUP(close_file) FILE *file = fopen(path, "re");
    char block[4096];
    size_t len;

    if (file == NULL)
        return err_set(err, -EINVAL, "could not read %s: %s", path, strerror(errno));
    while ((len = fread(block, 1, sizeof(block), file)) > 0)
        (void)buf_add(ret_text, block, len);
    if (ferror(file))
        return err_set(err, -EINVAL, "could not read %s: %s", path, strerror(errno));
    (void)buf_add_text(ret_text, "\n"); /* never empty, and ends its last comment */
    if (buf_ok(ret_text) < 0)
        return err_set(err, -ENOMEM, "no memory for %s", path);
    if (strlen(ret_text->data) != ret_text->len)
        return err_set(err, -EINVAL, "%s: there is a NUL byte in it", path);
    return 0;
}

/* ---- one transaction ---- */

static int simple(struct run *run, const char *sql, struct err *err)
{
    return database_script(run->database, sql, clock_usec() + STATEMENT_USEC, err);
}

/* PostgreSQL's whole story; -EIO only. */
static int explain(const struct run *run, const char *what, struct err *err)
{
    const struct database_error *error = database_error(run->database);
    bool detail = error->detail[0] != '\0', hint = error->hint[0] != '\0';

    return err_set(err, -EIO, "%s%s: %s%s%s%s%s%s%s", what, error->severity,
                   error->message, detail || hint ? " (" : "", error->detail,
                   detail && hint ? "; " : "", hint ? "hint: " : "", error->hint,
                   detail || hint ? ")" : "");
}

static void roll_back(struct run *run)
{
    /* If it cannot be said, the connection is lost, and the transaction with it. */
    if (database_connected(run->database) && simple(run, "ROLLBACK", NULL) < 0)
        database_close(run->database);
}

/* The lock belongs to the transaction, not to the session: behind a transaction pooler a
 * session is anybody's, and a lock left on it would stay for ever. So each file is a
 * transaction, and what is applied is looked at anew in each. */
static int begin(struct run *run, struct err *err)
{
    uint64_t lock_usec =
        run->settings->lock_usec != 0 ? run->settings->lock_usec : LOCK_USEC;
    CLEANUP(buf_done) struct buf sql = BUF_EMPTY;

    (void)buf_add_format(&sql,
                         "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;"
                         "SET LOCAL statement_timeout = 0;"
                         "SET LOCAL idle_in_transaction_session_timeout = 0;"
                         "SET LOCAL lock_timeout = %llu",
                         (unsigned long long)(lock_usec / USEC_PER_MSEC));
    if (buf_ok(&sql) < 0)
        return err_set(err, -ENOMEM, "no memory for a statement");
    int r = simple(run, sql.data, err);
    if (r < 0)
        return r == -EIO ? explain(run, "", err) : r;

    r = database_run(run->database, "SELECT pg_catalog.pg_advisory_xact_lock(5459782, 1)",
                     clock_usec() + lock_usec + 5 * USEC_PER_SEC, NULL, err);
    if (r == -EIO && strcmp(database_sqlstate(run->database), "55P03") == 0)
        r = err_set(err, -EIO,
                    "another migration of this database has been running for %llu s; try "
                    "again when it is done",
                    (unsigned long long)(lock_usec / USEC_PER_SEC));
    else if (r == -EIO)
        r = explain(run, "", err);
    if (r == 0)
        r = simple(run, "SET LOCAL lock_timeout TO DEFAULT", err);
    if (r < 0)
        roll_back(run);
    return r;
}

static int commit(struct run *run, struct err *err)
{
    int r = simple(run, "COMMIT", err);

    if (r == -EIO) { /* a deferred constraint, say */
        r = explain(run, "at COMMIT: ", err);
        roll_back(run);
    }
    return r;
}

static int truth(struct run *run, const char *sql, bool *ret_truth, struct err *err)
{
    CLEANUP(database_clear) PGresult *result = NULL;
    int r = database_run(run->database, sql, clock_usec() + STATEMENT_USEC, &result, err);

    if (r < 0)
        return r == -EIO ? explain(run, "", err) : r;
    *ret_truth = PQgetvalue(result, 0, 0)[0] == 't';
    return 0;
}

static int has_table(struct run *run, bool *ret_there, struct err *err)
{
    return truth(run, "SELECT pg_catalog.to_regclass('gateway.migrations') IS NOT NULL",
                 ret_there, err);
}

/* CREATE SCHEMA IF NOT EXISTS wants the right to create one even where it exists: a role
 * that was given a schema of its own has not got it. */
static int make_table(struct run *run, struct err *err)
{
    bool there = false;
    int r = truth(run, "SELECT pg_catalog.to_regnamespace('gateway') IS NOT NULL", &there,
                  err);

    if (r == 0 && !there)
        r = simple(run, "CREATE SCHEMA gateway", err);
    if (r == 0)
        r = simple(run,
                   "CREATE TABLE gateway.migrations ("
                   "version integer PRIMARY KEY, name text NOT NULL, "
                   "applied_at timestamptz NOT NULL DEFAULT pg_catalog.now())",
                   err);
    return r == -EIO ? explain(run, "could not make the schema: ", err) : r;
}

/* A schema that somebody else made for us stays theirs. */
static int drop_table(struct run *run, struct err *err)
{
    bool ours = false;
    int r = truth(run,
                  "SELECT pg_catalog.pg_has_role(n.nspowner, 'USAGE') "
                  "FROM pg_catalog.pg_namespace n WHERE n.nspname = 'gateway'",
                  &ours, err);

    if (r == 0)
        r = simple(run, "DROP TABLE gateway.migrations", err);
    if (r == 0 && ours)
        r = simple(run, "DROP SCHEMA gateway", err);
    return r == -EIO ? explain(run, "could not remove the schema: ", err) : r;
}

static int read_applied(struct run *run, struct err *err)
{
    CLEANUP(database_clear) PGresult *result = NULL;
    int r = database_run(run->database,
                         "SELECT pg_catalog.count(*), pg_catalog.max(m.version) "
                         "FROM gateway.migrations m",
                         clock_usec() + STATEMENT_USEC, &result, err);

    if (r < 0)
        return r == -EIO ? explain(run, "", err) : r;
    run->applied = strtol(PQgetvalue(result, 0, 0), NULL, 10);
    if (run->applied > 0 && strtol(PQgetvalue(result, 0, 1), NULL, 10) != run->applied)
        return err_set(err, -EINVAL,
                       "gateway.migrations has holes: not the work of this program");
    if (run->applied > run->count)
        return err_set(
            err, -EINVAL,
            "the database is at version %ld, newer than %s, which ends at %ld; "
            "use the newer pg-sse-gateway",
            run->applied, run->settings->dir, run->count);
    return 0;
}

/* ---- one file ---- */

static int check_statements(const char *path, const char *text, struct err *err)
{
    struct sqlfile file = {.at = text, .line = 1};
    struct sqlfile_statement statement;

    while (sqlfile_next(&file, &statement))
        if (statement.ends_transaction)
            return err_set(err, -EINVAL,
                           "%s:%ld: a migration may not begin or end a transaction: it "
                           "runs in one as a whole",
                           path, statement.line);
    return 0;
}

/* PostgreSQL gives the position of what it could not read or find; of what failed while
 * it ran only the statement is known, by how many were done before it. */
static long failed_line(const struct database_error *error, const char *text)
{
    struct sqlfile file = {.at = text, .line = 1};
    struct sqlfile_statement statement = {.line = 1};

    if (error->position > 0)
        return sqlfile_line(text, error->position);
    for (long i = 0; i <= error->statement; i++)
        if (!sqlfile_next(&file, &statement))
            break;
    return statement.line;
}

static int run_file(struct run *run, long number, bool up, struct err *err)
{
    CLEANUP(buf_done) struct buf path = BUF_EMPTY;
    CLEANUP(buf_done) struct buf text = BUF_EMPTY;

    (void)buf_add_format(&path, "%s/%04ld_%s.%s.sql", run->settings->dir, number,
                         run->migrations[number - 1].name, up ? "up" : "down");
    if (buf_ok(&path) < 0)
        return err_set(err, -ENOMEM, "no memory for a file's name");
    int r = read_file(path.data, &text, err);
    if (r == 0)
        r = check_statements(path.data, text.data, err);
    if (r < 0)
        return r;

    r = database_script(run->database, text.data, CLOCK_NEVER, err);
    if (r == -EIO) {
        long line = failed_line(database_error(run->database), text.data);
        (void)buf_add_format(&path, ":%ld: ", line);
        return explain(run, path.data, err);
    }
    if (r < 0)
        return err_prefix(err, r, "%s", path.data);
    if (!database_in_transaction(run->database))
        return err_set(err, -EINVAL, "%s: it ended its transaction", path.data);
    return 0;
}

static int note(struct run *run, long number, bool up, struct err *err)
{
    char digits[24];
    const char *values[] = {digits, run->migrations[number - 1].name};
    struct database_query query = {
        .sql = up ? "INSERT INTO gateway.migrations (version, name) VALUES ($1, $2)"
                  : "DELETE FROM gateway.migrations WHERE version = $1",
        .count = up ? 2 : 1,
        .values = values,
    };

    (void)snprintf(digits, sizeof(digits), "%ld", number);
    int r =
        database_query(run->database, &query, clock_usec() + STATEMENT_USEC, NULL, err);
    return r == -EIO ? explain(run, "gateway.migrations: ", err) : r;
}

static void say(const struct run *run, const char *what, long number)
{
    if (run->out != NULL)
        (void)fprintf(run->out, "%s %04ld_%s\n", what, number,
                      run->migrations[number - 1].name);
}

/* ---- up, down, status ---- */

/* One step in a transaction that has begun. */
static int step_up(struct run *run, bool *ret_more, struct err *err)
{
    bool there = false;
    int r = has_table(run, &there, err);

    if (r == 0 && !there)
        r = make_table(run, err);
    if (r == 0)
        r = read_applied(run, err);
    if (r < 0)
        return r;
    *ret_more = run->applied < run->count;
    if (!*ret_more)
        return 0;
    r = run_file(run, run->applied + 1, true, err);
    return r == 0 ? note(run, run->applied + 1, true, err) : r;
}

static int run_up(struct run *run, struct err *err)
{
    for (bool first = true;; first = false) {
        bool more = false;
        int r = begin(run, err);
        if (r < 0)
            return r;
        r = step_up(run, &more, err);
        if (r < 0) {
            roll_back(run);
            return r;
        }
        r = commit(run, err);
        if (r < 0)
            return r;
        if (more) {
            say(run, "applied", run->applied + 1);
            continue;
        }
        if (first && run->out != NULL)
            (void)fprintf(run->out, "the database is up to date, at version %ld\n",
                          run->applied);
        return 0;
    }
}

static int step_down(struct run *run, struct err *err)
{
    bool there = false;
    int r = has_table(run, &there, err);

    run->applied = 0;
    if (r == 0 && there)
        r = read_applied(run, err);
    if (r < 0)
        return r;
    if (run->applied == 0)
        return err_set(err, -ENOENT, "there is nothing to take back");

    r = run_file(run, run->applied, false, err);
    if (r == 0)
        r = note(run, run->applied, false, err);
    if (r == 0 && run->applied == 1)
        r = drop_table(run, err);
    return r;
}

static int run_down(struct run *run, struct err *err)
{
    int r = begin(run, err);

    if (r < 0)
        return r;
    r = step_down(run, err);
    if (r < 0) {
        roll_back(run);
        return r;
    }
    r = commit(run, err);
    if (r == 0)
        say(run, "took back", run->applied);
    return r;
}

/* What the database has, a line each; returns how many. */
static int list_applied(struct run *run, long *ret_count, struct err *err)
{
    CLEANUP(database_clear) PGresult *result = NULL;
    int r = database_run(run->database,
                         "SELECT m.version, m.name, pg_catalog.date_trunc('second', "
                         "m.applied_at) FROM gateway.migrations m ORDER BY m.version",
                         clock_usec() + STATEMENT_USEC, &result, err);

    if (r < 0)
        return r == -EIO ? explain(run, "", err) : r;
    *ret_count = PQntuples(result);
    for (int i = 0; i < PQntuples(result); i++) {
        long number = strtol(PQgetvalue(result, i, 0), NULL, 10);
        (void)fprintf(run->out, "%04ld  %-24s  applied %s%s\n", number,
                      PQgetvalue(result, i, 1), PQgetvalue(result, i, 2),
                      number > run->count ? ", by a newer pg-sse-gateway" : "");
    }
    return 0;
}

static int run_status(struct run *run, struct err *err)
{
    bool there = false;
    long applied = 0;
    int r = has_table(run, &there, err);

    if (r == 0 && there)
        r = list_applied(run, &applied, err);
    for (long i = applied; r == 0 && i < run->count; i++)
        (void)fprintf(run->out, "%04ld  %-24s  not applied\n", i + 1,
                      run->migrations[i].name);
    return r;
}

static int run_with(const struct migrate_settings *settings, FILE *out,
                    int (*work)(struct run *run, struct err *err), struct err *err)
{
    struct run run = {.settings = settings, .out = out};
    int r = read_folder(&run, err);

    if (r == 0) {
        run.database = database_new(&(struct database_settings){
            .dsn = settings->dsn,
            .password = settings->password,
            .door = "migrate",
            .target = "read-write",
            .stop_fd = settings->stop_fd,
        });
        if (run.database == NULL)
            r = err_set(err, -ENOMEM, "no memory for a connection");
    }
    if (r == 0)
        r = database_connect(run.database, clock_usec() + CONNECT_USEC, err);
    if (r == 0)
        r = work(&run, err);
    database_free(run.database);
    free_migrations(&run);
    return r;
}

int migrate_up(const struct migrate_settings *settings, FILE *out, struct err *err)
{
    return run_with(settings, out, run_up, err);
}

int migrate_down(const struct migrate_settings *settings, FILE *out, struct err *err)
{
    return run_with(settings, out, run_down, err);
}

int migrate_status(const struct migrate_settings *settings, FILE *out, struct err *err)
{
    return run_with(settings, out, run_status, err);
}
