-- What a PostgreSQL server does for `PostgresRecords`, in the schema that the search path names.
--
-- Each function that takes `_args` is a command: one transaction, of which nobody sees half. Its arguments are JSON, and
-- the bytes of parts; and so is its reply. Who writes records holds the row of `store` first: so numbers are given in
-- the order of commits, nobody who asks what was changed since the last one misses any, and no two commands wait for
-- each other.
--
-- All of it may be run again on a schema that an earlier release has made.

CREATE TABLE IF NOT EXISTS store (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    version integer NOT NULL DEFAULT 1,
    id text NOT NULL DEFAULT '',            -- names these records as long as none of them was lost
    revision bigint NOT NULL DEFAULT 0,     -- the number of the last change
    spared timestamptz                      -- until when those are alive who have said nothing yet to what lost something
);

-- The id as long as the server has not crashed: then it empties this table, and may have lost the last changes.
CREATE UNLOGGED TABLE IF NOT EXISTS unbroken (id text PRIMARY KEY);

CREATE TABLE IF NOT EXISTS records (
    space text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    record_group text COLLATE "C" NOT NULL,
    owner text COLLATE "C",
    used_at bigint,                         -- this and the next: microseconds since 1970, by the clock of a process
    expires_at bigint,
    size bigint NOT NULL,
    created bigint NOT NULL,
    revision bigint NOT NULL,
    state text NOT NULL,
    since text NOT NULL,                    -- how old its parts may be
    made_by text NOT NULL,                  -- the step that changed it last
    PRIMARY KEY (space, name)
);
CREATE INDEX IF NOT EXISTS records_made ON records (space, created);
CREATE INDEX IF NOT EXISTS records_of_group ON records (space, record_group, created);
CREATE INDEX IF NOT EXISTS records_changed ON records (revision);
CREATE INDEX IF NOT EXISTS records_held ON records (owner) WHERE owner IS NOT NULL;
CREATE INDEX IF NOT EXISTS records_expiring ON records (expires_at) WHERE owner IS NULL AND expires_at IS NOT NULL;

CREATE TABLE IF NOT EXISTS parts (
    space text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    part text COLLATE "C" NOT NULL,         -- kind and number
    revision bigint NOT NULL,
    size bigint NOT NULL,
    stamp text COLLATE "C" NOT NULL,        -- of its blob; '' where its bytes are here
    data bytea NOT NULL,
    PRIMARY KEY (space, name, part)
);

-- The ids that it had before something was lost, perhaps, each with the number up to which nothing was.
ALTER TABLE store ADD COLUMN IF NOT EXISTS past jsonb NOT NULL DEFAULT '[]';

-- Large parts, which are sent before the change that names them, in pieces.
CREATE TABLE IF NOT EXISTS blobs (
    stamp text COLLATE "C" PRIMARY KEY,
    pieces integer NOT NULL,
    expires_at timestamptz                  -- unless a record names it by then
);
CREATE TABLE IF NOT EXISTS pieces (
    stamp text COLLATE "C" NOT NULL,
    field text COLLATE "C" NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (stamp, field)
);
ALTER TABLE parts ALTER COLUMN data SET STORAGE EXTERNAL;  -- to compress them takes longer than to write them
ALTER TABLE pieces ALTER COLUMN data SET STORAGE EXTERNAL;
CREATE INDEX IF NOT EXISTS blobs_unnamed ON blobs (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE IF NOT EXISTS logs (
    space text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    number bigint GENERATED ALWAYS AS IDENTITY,
    line text NOT NULL,
    PRIMARY KEY (space, name, number)
);
CREATE TABLE IF NOT EXISTS failures (LIKE logs INCLUDING ALL);  -- the same of the logs of failures

-- Until when an owner is alive unless it says so again, on the clock of this server; never of one that has left.
CREATE TABLE IF NOT EXISTS owners (
    owner text COLLATE "C" PRIMARY KEY,
    until timestamptz NOT NULL
);

CREATE TABLE IF NOT EXISTS watches (
    space text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    owner text COLLATE "C" NOT NULL,
    sessions integer NOT NULL,
    PRIMARY KEY (space, name, owner)
);

INSERT INTO store DEFAULT VALUES ON CONFLICT DO NOTHING;

-- ---------------------------------------------------------------- records

-- Only one at a time writes records.
CREATE OR REPLACE FUNCTION take_turn() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM store FOR UPDATE;
END $$;

-- As a reply: its key, the newest line of its log, its fields.
CREATE OR REPLACE FUNCTION told(_record records) RETURNS json LANGUAGE plpgsql AS $$
BEGIN
    RETURN json_build_array(
        json_build_array(_record.space, _record.name),
        (SELECT line FROM logs WHERE space = _record.space AND name = _record.name ORDER BY number DESC LIMIT 1),
        _record.revision, _record.created, _record.record_group, _record.owner, _record.used_at, _record.expires_at,
        _record.size, _record.state, _record.since
    );
END $$;

-- The same of records that are not there, without fields.
CREATE OR REPLACE FUNCTION all_told(_keys jsonb) RETURNS json LANGUAGE plpgsql AS $$
BEGIN
    RETURN (
        SELECT json_agg(CASE
            WHEN revision IS NOT NULL THEN told(records)
            ELSE json_build_array(key, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)
        END)
        FROM jsonb_array_elements(_keys) AS key
        LEFT JOIN records ON space = key->>0 AND name = key->>1
    );
END $$;

CREATE OR REPLACE FUNCTION rows(_args jsonb, _data bytea[]) RETURNS json LANGUAGE plpgsql AS $$
BEGIN
    RETURN jsonb_build_array((SELECT revision FROM store)) || all_told(_args->'keys')::jsonb;
END $$;

CREATE OR REPLACE FUNCTION drop_blob(_stamp text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM pieces WHERE stamp = _stamp;
    DELETE FROM blobs WHERE stamp = _stamp;
END $$;

-- How many bytes that were.
CREATE OR REPLACE FUNCTION drop_part(_space text, _name text, _part text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    _old record;
BEGIN
    DELETE FROM parts WHERE space = _space AND name = _name AND part = _part RETURNING size, stamp INTO _old;
    IF _old.stamp <> '' THEN
        PERFORM drop_blob(_old.stamp);
    END IF;
    RETURN coalesce(_old.size, 0);
END $$;

-- A large part is about to come, piece by piece; it goes if no record names it in time.
CREATE OR REPLACE FUNCTION begin(_args jsonb, _data bytea[]) RETURNS json LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO blobs VALUES (
        _args->>'stamp', (_args->>'pieces')::integer, clock_timestamp() + (_args->>'seconds')::integer * interval '1 s'
    ) ON CONFLICT DO NOTHING;
    RETURN '1';
END $$;

-- Those that are there.
CREATE OR REPLACE FUNCTION blobs(_args jsonb, _data bytea[]) RETURNS json LANGUAGE plpgsql AS $$
BEGIN
    RETURN (SELECT coalesce(json_agg(stamp), '[]') FROM blobs WHERE _args->'stamps' ? stamp);
END $$;

-- Whether all that was sent before is still there.
CREATE OR REPLACE FUNCTION has_blobs(_put jsonb) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RETURN NOT EXISTS (
        SELECT FROM jsonb_array_elements(_put) AS part WHERE part->>3 <> '' AND NOT EXISTS (
            SELECT FROM blobs
            WHERE stamp = part->>3 AND pieces <= (SELECT count(*) FROM pieces WHERE stamp = part->>3)
        )
    );
END $$;

-- A record, and what belongs to it.
CREATE OR REPLACE FUNCTION erase(_space text, _name text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM drop_part(space, name, part) FROM parts WHERE space = _space AND name = _name;
    DELETE FROM logs WHERE space = _space AND name = _name;
    DELETE FROM failures WHERE space = _space AND name = _name;
    DELETE FROM watches WHERE space = _space AND name = _name;
    DELETE FROM records WHERE space = _space AND name = _name;
END $$;

CREATE OR REPLACE FUNCTION add_lines(_change jsonb, _limit bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    _space text := _change->'key'->>0;
    _name text := _change->'key'->>1;
BEGIN
    IF (_change->>'cleared')::boolean THEN
        DELETE FROM logs WHERE space = _space AND name = _name;
        DELETE FROM failures WHERE space = _space AND name = _name;
    END IF;
    IF _change->>'longer' <> '' THEN
        UPDATE logs SET line = _change->>'longer' WHERE space = _space AND name = _name AND number = (
            SELECT max(number) FROM logs WHERE space = _space AND name = _name
        );
    END IF;
    FOR _at IN 0 .. jsonb_array_length(_change->'lines') - 1 LOOP
        INSERT INTO logs (space, name, line) VALUES (_space, _name, _change->'lines'->>_at);
        DELETE FROM logs WHERE space = _space AND name = _name AND number <= (
            SELECT number FROM logs WHERE space = _space AND name = _name ORDER BY number DESC OFFSET _limit LIMIT 1
        );
    END LOOP;
    IF jsonb_array_length(_change->'failures') > 0 THEN  -- an earlier release does not tell of them
        INSERT INTO failures (space, name, line)
        SELECT _space, _name, line FROM jsonb_array_elements_text(_change->'failures') AS line;
        DELETE FROM failures WHERE space = _space AND name = _name AND number <= (
            SELECT number FROM failures WHERE space = _space AND name = _name
            ORDER BY number DESC OFFSET _limit LIMIT 1
        );
    END IF;
END $$;

-- By how many bytes the record grows.
CREATE OR REPLACE FUNCTION put_parts(_change jsonb, _revision bigint, _data bytea[]) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    _space text := _change->'key'->>0;
    _name text := _change->'key'->>1;
    _part jsonb;
    _more bigint := 0;
BEGIN
    FOR _at IN 0 .. jsonb_array_length(_change->'drop') - 1 LOOP
        _more := _more - drop_part(_space, _name, _change->'drop'->>_at);
    END LOOP;
    FOR _at IN 0 .. jsonb_array_length(_change->'put') - 1 LOOP
        _part := _change->'put'->_at;
        _more := _more - drop_part(_space, _name, _part->>0) + (_part->>2)::bigint;
        INSERT INTO parts VALUES (
            _space, _name, _part->>0, _revision, (_part->>2)::bigint, _part->>3, _data[(_part->>1)::integer]
        );
        IF _part->>3 <> '' THEN
            UPDATE blobs SET expires_at = NULL WHERE stamp = _part->>3;
        END IF;
    END LOOP;
    RETURN _more;
END $$;

-- When what a line tells of has ended: microseconds since 1970, 0 where it does not say.
CREATE OR REPLACE FUNCTION ended_at(_line text) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(_line::json->>'finished_at', _line::json->>'queued_at', '0')::bigint
$$;

-- A log that was lost has these lines, and those that others have brought.
CREATE OR REPLACE FUNCTION lines(_args jsonb, _data bytea[]) RETURNS json LANGUAGE plpgsql AS $$
DECLARE
    _space text := _args->'key'->>0;
    _name text := _args->'key'->>1;
    _log text := CASE WHEN _args->>'log' = 'failures' THEN 'failures' ELSE 'logs' END;
    _lines text[];
BEGIN
    PERFORM take_turn();
    IF NOT EXISTS (SELECT FROM records WHERE space = _space AND name = _name) THEN
        RETURN '0';
    END IF;
    EXECUTE format('WITH gone AS (DELETE FROM %I WHERE space = $1 AND name = $2 RETURNING line)
        SELECT ARRAY(SELECT line FROM gone UNION SELECT jsonb_array_elements_text($3))', _log)
    INTO _lines USING _space, _name, _args->'lines';
    EXECUTE format('INSERT INTO %I (space, name, line)
        SELECT $1, $2, line FROM (
            SELECT line, ended_at(line) AS ended FROM unnest($3) AS line ORDER BY ended DESC LIMIT $4
        ) AS newest ORDER BY ended', _log)
    USING _space, _name, _lines, (_args->>'limit')::bigint;
    RETURN '1';
END $$;

-- Lines that are too old go; all of them at once.
CREATE OR REPLACE FUNCTION forget(_args jsonb, _data bytea[]) RETURNS json LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM logs
    WHERE space = _args->>'space' AND ended_at(line) BETWEEN 1 AND (_args->'before'->>'log')::bigint - 1;
    DELETE FROM failures
    WHERE space = _args->>'space' AND ended_at(line) BETWEEN 1 AND (_args->'before'->>'failures')::bigint - 1;
    RETURN '0';
END $$;

-- Compare all records with what the caller takes them to be, and change all of them, or none.
CREATE OR REPLACE FUNCTION swap(_args jsonb, _data bytea[]) RETURNS json LANGUAGE plpgsql AS $$
DECLARE
    _changes jsonb := _args->'changes';
    _by text := _args->>'by';
    _change jsonb;
    _old record;
    _revision bigint;
    _sizes bigint[];
    _same boolean := true;
    _done boolean := false;
    _gone boolean := false;
BEGIN
    UPDATE store SET revision = revision + 1 RETURNING revision INTO _revision;
    FOR _at IN 0 .. jsonb_array_length(_changes) - 1 LOOP
        _change := _changes->_at;
        SELECT revision, size, made_by INTO _old FROM records
        WHERE space = _change->'key'->>0 AND name = _change->'key'->>1;
        _sizes := _sizes || coalesce(_old.size, 0);
        _same := _same AND coalesce(_old.revision::text, '') = _change->>'was';
        _gone := _gone OR (jsonb_array_length(_change->'put') > 0 AND NOT has_blobs(_change->'put'));
        IF _old.made_by = _by THEN
            _done := true;
            _revision := _old.revision;
        END IF;
    END LOOP;
    IF _done THEN  -- the caller has not heard the reply, and has sent it once more
        RETURN to_json(ARRAY['done', _revision::text] || _sizes::text[]);
    ELSIF NOT _same THEN
        RETURN '["stale"]'::jsonb || all_told(jsonb_path_query_array(_changes, '$[*].key'))::jsonb;
    ELSIF _gone THEN
        RETURN '["gone"]';
    END IF;
    FOR _at IN 0 .. jsonb_array_length(_changes) - 1 LOOP
        _change := _changes->_at;
        IF (_change->>'anew')::boolean THEN
            PERFORM erase(_change->'key'->>0, _change->'key'->>1);
            _sizes[_at + 1] := 0;
        END IF;
        IF _change ? 'text' THEN
            _sizes[_at + 1] := _sizes[_at + 1] + put_parts(_change, _revision, _data);
            INSERT INTO records VALUES (
                _change->'key'->>0, _change->'key'->>1, _change->>'group', substr(nullif(_change->>'owner', ''), 2),
                nullif(_change->>'used', '')::bigint, nullif(_change->>'expires', '')::bigint, _sizes[_at + 1],
                _revision, _revision, replace(_change->>'text', _args->>'ahead', _revision::text), _change->>'since',
                _by
            ) ON CONFLICT (space, name) DO UPDATE SET
                record_group = excluded.record_group, owner = excluded.owner, expires_at = excluded.expires_at,
                used_at = CASE WHEN _change ? 'used' THEN excluded.used_at ELSE records.used_at END,
                size = excluded.size, revision = excluded.revision, state = excluded.state, since = excluded.since,
                made_by = excluded.made_by;
            PERFORM add_lines(_change, (_args->>'limit')::bigint);
        END IF;
    END LOOP;
    IF _args->>'tell' <> 'false' THEN
        PERFORM pg_notify(current_schema(), _args->>'tell');
    END IF;
    IF (_args->>'durable')::boolean THEN
        PERFORM set_config('synchronous_commit', current_setting('panel_schedule.durable'), true);
    END IF;
    RETURN to_json(ARRAY['done', _revision::text] || _sizes::text[]);
END $$;

-- Those of a space or a group, as `selected` takes them; without their logs.
CREATE OR REPLACE FUNCTION scan(_args jsonb, _data bytea[]) RETURNS json LANGUAGE plpgsql AS $$
BEGIN
    RETURN (
        SELECT coalesce(json_agg(json_build_array(
            json_build_array(space, name), NULL, revision, created, record_group, owner, used_at, expires_at, size, state,
            since
        )), '[]')
        FROM (
            SELECT * FROM records
            WHERE space = _args->>'space'
            AND (NOT _args ? 'group' OR record_group = _args->>'group')
            AND (NOT _args ? 'free' OR owner IS NULL)
            AND (NOT _args ? 'owners' OR (owner IS NOT NULL AND (_args->'owners' = '[]' OR _args->'owners' ? owner)))
            ORDER BY created DESC
            LIMIT CASE WHEN _args->>'last' <> 'false' THEN (_args->>'last')::bigint END
        ) AS found
    );
END $$;

-- What was changed in these spaces since; and up to which number that is all, as one statement sees it.
CREATE OR REPLACE FUNCTION changes(_args jsonb, _data bytea[]) RETURNS json LANGUAGE plpgsql AS $$
BEGIN
    RETURN (
        SELECT jsonb_build_array((SELECT revision FROM store)) || coalesce(json_agg(told(records) ORDER BY revision), '[]')::jsonb
        FROM records
        WHERE revision > (_args->>'since')::bigint AND _args->'spaces' ? space
    );
END $$;

-- ---------------------------------------------------------------- owners

-- Whether nobody was heard for so long that it was this server which was away: then nobody is taken for dead.
CREATE OR REPLACE FUNCTION was_away() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RETURN NOT EXISTS (SELECT FROM owners WHERE until > clock_timestamp());
END $$;

CREATE OR REPLACE FUNCTION is_alive(_owner text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RETURN coalesce(
        (
            SELECT until > clock_timestamp() OR (until > '-infinity' AND was_away()) FROM owners WHERE owner = _owner
        ),
        (SELECT spared > clock_timestamp() FROM store),
        false
    );
END $$;

-- Whether this is the store of that id, and it has lost nothing since it has given that number.
CREATE OR REPLACE FUNCTION is_whole(_id text, _last bigint) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RETURN EXISTS (SELECT FROM store JOIN unbroken USING (id) WHERE id = _id AND revision >= _last);
END $$;

-- Up to which number nothing was lost since the store had that id.
CREATE OR REPLACE FUNCTION survived(_id text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    _least bigint;
    _each jsonb;
BEGIN
    SELECT revision INTO _least FROM store WHERE id = _id;
    IF FOUND THEN
        RETURN _least;
    END IF;
    FOR _each IN SELECT jsonb_array_elements(past) FROM store LOOP  -- newest first
        _least := least(_least, (_each->>1)::bigint);
        IF _each->>0 = _id THEN
            RETURN _least;
        END IF;
    END LOOP;
    RETURN 0;
END $$;

-- The caller is alive from now on; the id of the store, its last number, and up to which nothing was lost.
CREATE OR REPLACE FUNCTION "join"(_args jsonb, _data bytea[]) RETURNS json LANGUAGE plpgsql AS $$
DECLARE
    _last bigint := (_args->>'last')::bigint;
    _until timestamptz := clock_timestamp() + (_args->>'lease')::bigint * interval '1 microsecond';
BEGIN
    IF NOT EXISTS (SELECT FROM store WHERE is_whole(id, _last)) THEN
        INSERT INTO store DEFAULT VALUES ON CONFLICT DO NOTHING;
        PERFORM take_turn();
        IF NOT EXISTS (SELECT FROM store WHERE is_whole(id, _last)) THEN  -- nor has somebody else seen to it meanwhile
            -- Something was lost, perhaps. All numbers from now on are greater than any before: by the clock.
            UPDATE store SET
                id = _args->>'fresh',
                past = CASE WHEN id = '' THEN past ELSE jsonb_build_array(jsonb_build_array(id, revision)) || past END,
                revision = greatest(revision, _last, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint);
            DELETE FROM unbroken;
            INSERT INTO unbroken SELECT id FROM store;
            PERFORM set_config('synchronous_commit', current_setting('panel_schedule.durable'), true);
        END IF;
    END IF;
    IF _args->>'id' <> '' THEN
        -- Who held something before, and has not heard yet that it was lost, is not dead.
        UPDATE store SET spared = _until WHERE id <> _args->>'id';
    END IF;
    IF was_away() THEN
        PERFORM take_turn();
        UPDATE owners SET until = _until WHERE until > '-infinity';
    END IF;
    INSERT INTO owners VALUES (_args->>'me', _until) ON CONFLICT (owner) DO UPDATE SET until = excluded.until;
    PERFORM watch(_args, _data);
    IF NOT _args ? 'survived' THEN  -- an earlier release
        RETURN (SELECT json_build_array(id, revision::text) FROM store);
    END IF;
    RETURN (SELECT json_build_array(id, revision::text, survived(_args->>'id')::text) FROM store);
END $$;

CREATE OR REPLACE FUNCTION leave(_args jsonb, _data bytea[]) RETURNS json LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM watches WHERE owner = _args->>'me';
    UPDATE owners SET until = '-infinity' WHERE owner = _args->>'me';
    PERFORM pg_notify(current_schema(), (_args->>'me') || ' left');
    RETURN '1';
END $$;

CREATE OR REPLACE FUNCTION alive(_args jsonb, _data bytea[]) RETURNS json LANGUAGE plpgsql AS $$
BEGIN
    RETURN to_json(is_alive(_args->>'owner'));
END $$;

CREATE OR REPLACE FUNCTION watch(_args jsonb, _data bytea[]) RETURNS json LANGUAGE plpgsql AS $$
DECLARE
    _each jsonb;
BEGIN
    FOR _at IN 0 .. jsonb_array_length(_args->'watched') - 1 LOOP
        _each := _args->'watched'->_at;
        IF (_each->>1)::integer > 0 THEN
            INSERT INTO watches VALUES (_each->0->>0, _each->0->>1, _args->>'me', (_each->>1)::integer)
            ON CONFLICT (space, name, owner) DO UPDATE SET sessions = excluded.sessions;
        ELSE
            DELETE FROM watches WHERE space = _each->0->>0 AND name = _each->0->>1 AND owner = _args->>'me';
        END IF;
    END LOOP;
    RETURN '1';
END $$;

CREATE OR REPLACE FUNCTION watchers(_args jsonb, _data bytea[]) RETURNS json LANGUAGE plpgsql AS $$
BEGIN
    RETURN (
        SELECT to_json(coalesce(sum(sessions), 0)::bigint)
        FROM watches
        WHERE space = _args->'key'->>0 AND name = _args->'key'->>1 AND owner <> _args->>'me' AND is_alive(owner)
    );
END $$;

-- ---------------------------------------------------------------- what is used, and what must go

CREATE OR REPLACE FUNCTION use(_args jsonb, _data bytea[]) RETURNS json LANGUAGE plpgsql AS $$
BEGIN
    PERFORM take_turn();
    UPDATE records SET used_at = (_args->>'now')::bigint
    WHERE space = _args->>'space' AND name IN (SELECT jsonb_array_elements_text(_args->'names'))
    AND (used_at IS NULL OR used_at < (_args->>'now')::bigint);
    RETURN '1';
END $$;

CREATE OR REPLACE FUNCTION "trim"(_args jsonb, _data bytea[]) RETURNS json LANGUAGE plpgsql AS $$
DECLARE
    _most numeric := coalesce((_args->>'entries')::numeric, 'NaN');  -- which is greater than any number
    _room numeric := coalesce((_args->>'size')::numeric, 'NaN');
    _count numeric;
    _total numeric;
    _row records;
    _turn boolean := false;
BEGIN
    LOOP
        SELECT count(*), coalesce(sum(size), 0) INTO _count, _total FROM records
        WHERE space = _args->>'space' AND (NOT _args ? 'group' OR record_group = _args->>'group')
        AND owner IS NULL AND size > 0 AND ((_args->>'larger')::boolean OR size <= _room);
        IF _count <= _most AND _total <= _room THEN
            RETURN '1';
        END IF;
        EXIT WHEN _turn;
        PERFORM take_turn();
        _turn := true;
    END LOOP;
    FOR _row IN
        SELECT * FROM records
        WHERE space = _args->>'space' AND (NOT _args ? 'group' OR record_group = _args->>'group')
        AND owner IS NULL AND size > 0 AND ((_args->>'larger')::boolean OR size <= _room) AND name <> _args->>'keep'
        ORDER BY coalesce(used_at, 0), created
    LOOP
        EXIT WHEN _count <= _most AND _total <= _room;
        PERFORM erase(_row.space, _row.name);
        _count := _count - 1;
        _total := _total - _row.size;
    END LOOP;
    RETURN '1';
END $$;

CREATE OR REPLACE FUNCTION sweep(_args jsonb, _data bytea[]) RETURNS json LANGUAGE plpgsql AS $$
DECLARE
    _now bigint := (_args->>'now')::bigint;
    _row records;
    _count integer := 0;
BEGIN
    IF EXISTS (SELECT FROM records WHERE owner IS NULL AND expires_at <= _now) THEN
        PERFORM take_turn();
        FOR _row IN SELECT * FROM records WHERE owner IS NULL AND expires_at <= _now LIMIT 1000 LOOP
            PERFORM erase(_row.space, _row.name);
            _count := _count + 1;
        END LOOP;
    END IF;
    RETURN to_json(_count);
END $$;

-- What the dead have left; what has expired goes.
CREATE OR REPLACE FUNCTION look(_args jsonb, _data bytea[]) RETURNS json LANGUAGE plpgsql AS $$
BEGIN
    PERFORM sweep(_args, _data);
    IF EXISTS (SELECT FROM blobs WHERE expires_at < clock_timestamp()) THEN
        PERFORM take_turn();
        PERFORM drop_blob(stamp) FROM blobs WHERE expires_at < clock_timestamp();
    END IF;
    IF was_away() THEN
        RETURN '[]';
    END IF;
    DELETE FROM watches WHERE owner IN (SELECT owner FROM owners WHERE until <= clock_timestamp());
    DELETE FROM owners
    WHERE until <= clock_timestamp() AND NOT EXISTS (SELECT FROM records WHERE records.owner = owners.owner);
    -- Nobody has told of these.
    UPDATE owners SET until = '-infinity'
    WHERE until <= clock_timestamp() AND until > '-infinity' AND owner <> _args->>'me';
    IF FOUND THEN
        PERFORM pg_notify(current_schema(), (_args->>'me') || ' left');
    END IF;
    RETURN (
        SELECT coalesce(json_agg(told(records)), '[]') FROM records
        WHERE owner <> '' AND owner <> _args->>'me' AND NOT is_alive(owner)
    );
END $$;
