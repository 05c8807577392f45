-- What a Redis server does for `RedisRecords` in one step: nobody sees half of it.
--
-- KEYS[1]: 'panel-schedule:{namespace}:id'. All other keys begin as it does, and so lie in the same slot of a cluster.
-- ARGV: the command; the id of the store and the last number that the caller has seen; its arguments as JSON; bytes.
--
--   id                 names these records as long as none of them was lost
--   revision           number of the last change
--   past               a list: the ids before, newest first, each with the number up to which nothing was lost then
--   run                the start of the server under which they are so: one that was started again may have lost some
--   record:<key>       a hash: one record, <key> is its space, NUL, its name
--   parts:<key>        a hash: its small parts, and where its large ones are
--   blob:<stamp>       a large part: a hash of its pieces
--   log:<key>          a list: its log as JSON, newest first
--   failures:<key>     the same of its log of failures
--   watch:<key>        a hash: by owner, how many sessions follow it
--   owners             by owner, until when it is alive unless it says so again: microseconds of this server's clock
--   heard              when any owner has said so
--   spared             until when those are alive who have said nothing yet to a store that lost something
--   made:<space>, made:<space>NUL<group>    the keys of records, by the number of their first change
--   changes:<space>    by that of their last
--   holds:<owner>      of an owner, '' is NOBODY
--   idle:<space>, idle:<space>NUL<group>    those that may be trimmed, by when they were used; 'bytes': their sizes
--   expires            those that may be swept, by when
--
-- No instant and no number goes through a Lua number and back as it is: "%.0f" keeps all digits up to 2^53.

local P = KEYS[1]:sub(1, -3)
local args = cjson.decode(ARGV[4])
local call = redis.call
local FIELDS = {'revision', 'created', 'group', 'owner', 'used', 'expires', 'size', 'text', 'since', 'by'}

local function exact(number) return ('%.0f'):format(number) end

local function now()
  local time = call('TIME')
  return time[1] * 1000000 + time[2]
end

-- ---------------------------------------------------------------- records

local function get(key)
  local row = {}
  for place, value in ipairs(call('HMGET', P .. 'record:' .. key, unpack(FIELDS))) do
    if not value then return nil end
    row[FIELDS[place]] = value
  end
  return row
end

-- As a reply: its key, the newest line of its log, its fields.
local function told(key)
  return {key, call('LINDEX', P .. 'log:' .. key, 0), unpack(call('HMGET', P .. 'record:' .. key, unpack(FIELDS)))}
end

local function all_told(reply, keys)
  for _, key in ipairs(keys) do reply[#reply + 1] = told(key) end
  return reply
end

-- Where a record is found: by index its score, and what stands for it there.
local function places(key, row)
  local space = key:match('^(%Z*)')
  local group = space .. '\0' .. row.group
  local found = {
    ['made:' .. space] = {row.created, key},
    ['made:' .. group] = {row.created, key},
    ['changes:' .. space] = {row.revision, key},
  }
  if row.owner ~= '' then
    found['holds:' .. row.owner:sub(2)] = {row.created, key}
  else
    if row.expires ~= '' then found['expires'] = {row.expires, key} end
    if tonumber(row.size) > 0 then
      -- Of equals the oldest is first.
      local place = {row.used ~= '' and row.used or '0', ('%016.0f'):format(row.created) .. key}
      found['idle:' .. space], found['idle:' .. group] = place, place
    end
  end
  return found
end

-- It was the one, and is the other; nil where it was not, or is no more.
local function index(key, old, new)
  local before, after = old and places(key, old) or {}, new and places(key, new) or {}
  for name, place in pairs(before) do
    if not after[name] then call('ZREM', P .. name, place[2]) end
    if name:sub(1, 5) == 'idle:' then call('HINCRBY', P .. 'bytes', name, '-' .. old.size) end
  end
  for name, place in pairs(after) do
    if not before[name] or before[name][1] ~= place[1] then call('ZADD', P .. name, place[1], place[2]) end
    if name:sub(1, 5) == 'idle:' then call('HINCRBY', P .. 'bytes', name, new.size) end
  end
  -- One that nobody knows is not alive, and what it holds has to be found.
  if new and #new.owner > 1 then
    call('ZADD', P .. 'owners', 'NX', call('GET', P .. 'spared') or 0, new.owner:sub(2))
  end
end

-- Of a part as it stands: its size, and the stamp of its blob.
local function described(part)
  local size, stamp = part:match('^%d+ (%d+) %d+ (%S+)')
  return tonumber(size) or 0, stamp or '-'
end

local function drop(key, field)
  local part = call('HGET', P .. 'parts:' .. key, field)
  if not part then return 0 end
  local size, stamp = described(part)
  call('HDEL', P .. 'parts:' .. key, field)
  if stamp ~= '-' then call('UNLINK', P .. 'blob:' .. stamp) end
  return size
end

local function erase(key, row)
  index(key, row, nil)
  for _, part in ipairs(call('HVALS', P .. 'parts:' .. key)) do
    local _, stamp = described(part)
    if stamp ~= '-' then call('UNLINK', P .. 'blob:' .. stamp) end
  end
  call('UNLINK', P .. 'record:' .. key, P .. 'parts:' .. key, P .. 'watch:' .. key)
  call('UNLINK', P .. 'log:' .. key, P .. 'failures:' .. key)
end

local function sweep(instant)
  local keys = call('ZRANGEBYSCORE', P .. 'expires', '-inf', instant, 'LIMIT', 0, 1000)
  for _, key in ipairs(keys) do erase(key, get(key)) end
  return #keys
end

-- ---------------------------------------------------------------- owners

-- Whether nobody was heard for so long that it was this server which was away: then nobody is taken for dead.
local function was_away(instant)
  local heard = call('GET', P .. 'heard')
  return heard and instant - heard > args.lease
end

local function alive(owner)
  local until_, instant = tonumber(call('ZSCORE', P .. 'owners', owner) or 0), now()
  return until_ > 0 and (until_ > instant or was_away(instant))
end

-- ---------------------------------------------------------------- commands

local commands = {}

-- Which start of which server this is; '' where the caller may not ask that.
local function this_run()
  local info = redis.pcall('INFO', 'server')
  return type(info) == 'string' and info:match('run_id:(%w+)') or ''
end

-- Up to which number nothing was lost since the store had that id.
local function survived(id, current, last)
  if id == current then return exact(last) end
  local least = math.huge
  for _, each in ipairs(call('LRANGE', P .. 'past', 0, -1)) do
    local former, number = each:match('^(%S+) (%S+)$')
    least = math.min(least, tonumber(number))
    if former == id then return exact(least) end
  end
  return '0'
end

-- The caller is alive from now on; the id of the store, its last number, and up to which nothing was lost.
function commands.join()
  local id, last, instant = call('GET', P .. 'id'), tonumber(call('GET', P .. 'revision') or 0), now()
  local run = this_run()
  if not id or last < args.last or call('GET', P .. 'run') ~= run then
    -- Something was lost, perhaps. All numbers from now on are greater than any before: by the clock.
    if id then
      call('LPUSH', P .. 'past', id .. ' ' .. exact(last))
      call('LTRIM', P .. 'past', 0, 49)
    end
    id, last = args.fresh, math.max(instant, last, args.last)
    call('SET', P .. 'id', id)
    call('SET', P .. 'revision', exact(last))
    call('SET', P .. 'run', run)
  end
  -- Who held something before, and has not heard yet that it was lost, is not dead.
  if ARGV[2] ~= '' and ARGV[2] ~= id then call('SET', P .. 'spared', exact(instant + args.lease)) end
  if was_away(instant) then
    for _, owner in ipairs(call('ZRANGEBYSCORE', P .. 'owners', '(0', '+inf')) do
      call('ZADD', P .. 'owners', exact(instant + args.lease), owner)
    end
  end
  call('SET', P .. 'heard', exact(instant))
  call('ZADD', P .. 'owners', exact(instant + args.lease), args.me)
  commands.watch()
  return {id, exact(last), survived(args.id, id, last)}
end

function commands.leave()
  if call('EXISTS', P .. 'holds:' .. args.me) == 1 then
    call('ZADD', P .. 'owners', 0, args.me)
  else
    call('ZREM', P .. 'owners', args.me)
  end
  call('PUBLISH', P .. 'bell', args.me .. ' left')
  return 1
end

function commands.alive() return alive(args.owner) and 1 or 0 end

function commands.rows() return all_told({call('GET', P .. 'revision')}, args.keys) end

-- How old the parts of a record may be, and one of them.
function commands.part()
  return {call('HGET', P .. 'record:' .. args.key, 'since'), call('HGET', P .. 'parts:' .. args.key, args.field)}
end

-- A large part is about to come, piece by piece; it goes if no record names it in time.
function commands.begin()
  call('HSET', P .. 'blob:' .. args.stamp, 'pieces', args.pieces)
  return call('EXPIRE', P .. 'blob:' .. args.stamp, args.seconds)
end

-- Those that are there.
function commands.blobs()
  local there = {}
  for _, stamp in ipairs(args.stamps) do
    if call('EXISTS', P .. 'blob:' .. stamp) == 1 then there[#there + 1] = stamp end
  end
  return there
end

-- Compare all records with what the caller takes them to be, and change all of them, or none.
function commands.swap()
  local rows, same, done = {}, true, false
  for place, change in ipairs(args.changes) do
    local row = get(change.key)
    rows[place] = row or false
    same = same and (row and row.revision or '') == change.was
    done = done or (row and row.by == args.by)
    for _, part in ipairs(change.put or {}) do
      local stamp, pieces = part[4], part[5]
      -- Of one whose beginning was lost while the rest came there are too few.
      if stamp ~= '' and call('HLEN', P .. 'blob:' .. stamp) <= pieces and not done then return {'gone'} end
    end
  end
  local reply = {'done'}
  if done then  -- the caller has not heard the reply, and has sent it once more
    for place, row in ipairs(rows) do
      reply[2], reply[place + 2] = row and row.revision or reply[2], row and row.size or '0'
    end
    return reply
  elseif not same then
    local keys = {}
    for place, change in ipairs(args.changes) do keys[place] = change.key end
    return all_told({'stale'}, keys)
  end
  local revision = exact(call('INCR', P .. 'revision'))
  reply[2] = revision
  for place, change in ipairs(args.changes) do
    local key, old, size = change.key, rows[place] or nil, '0'
    if old and change.anew then
      erase(key, old)
      old = nil
    end
    if change.text then
      size = old and tonumber(old.size) or 0
      for _, field in ipairs(change.drop) do size = size - drop(key, field) end
      for _, part in ipairs(change.put) do
        local field, at, bytes, stamp = unpack(part)
        size = size - drop(key, field) + bytes
        call('HSET', P .. 'parts:' .. key, field, revision .. ' ' .. ARGV[4 + at])
        if stamp ~= '' then call('PERSIST', P .. 'blob:' .. stamp) end
      end
      size = exact(size)
      local new = {
        revision = revision, created = old and old.created or revision, group = change.group, owner = change.owner,
        used = change.used or (old and old.used) or '', expires = change.expires, size = size,
        text = change.text:gsub(args.ahead, revision), since = change.since, by = args.by,
      }
      local values = {}
      for _, field in ipairs(FIELDS) do
        values[#values + 1] = field
        values[#values + 1] = new[field]
      end
      call('HSET', P .. 'record:' .. key, unpack(values))
      index(key, old, new)
      local log = P .. 'log:' .. key
      if change.cleared then call('DEL', log, P .. 'failures:' .. key) end
      if change.longer ~= '' then call('LSET', log, 0, change.longer) end
      for _, line in ipairs(change.lines) do call('LPUSH', log, line) end
      if #change.lines > 0 then call('LTRIM', log, 0, args.limit - 1) end
      if #change.failures > 0 then
        local failures = P .. 'failures:' .. key
        for _, line in ipairs(change.failures) do call('LPUSH', failures, line) end
        call('LTRIM', failures, 0, args.limit - 1)
      end
    elseif old then
      size = old.size  -- it was looked at, and stays
    end
    reply[place + 2] = size
  end
  if args.tell then call('PUBLISH', P .. 'bell', args.tell) end
  return reply
end

local function ended(line)
  local run = cjson.decode(line)
  return tonumber(run.finished_at) or tonumber(run.queued_at) or 0
end

-- A log that was lost has these lines, and those that others have brought.
function commands.lines()
  local log, there = P .. args.log .. ':' .. args.key, {}
  if call('EXISTS', P .. 'record:' .. args.key) == 0 then return 0 end
  local lines = call('LRANGE', log, 0, -1)
  for _, line in ipairs(lines) do there[line] = true end
  for _, line in ipairs(args.lines) do
    if not there[line] then lines[#lines + 1] = line end
  end
  table.sort(lines, function(one, other) return ended(one) > ended(other) end)
  call('DEL', log)
  for place = 1, math.min(#lines, args.limit) do call('RPUSH', log, lines[place]) end
  return 1
end

-- Lines that are too old go, from the logs of so many records of a space; how many records that were.
function commands.forget()
  local keys = call('ZRANGE', P .. 'made:' .. args.space, args.first, args.first + args.most - 1)
  for _, key in ipairs(keys) do
    for name, before in pairs(args.before) do
      local log = P .. name .. ':' .. key
      repeat
        local line = call('LINDEX', log, -1)
        local oldest = line and ended(line) or 0
        local old = oldest > 0 and oldest < tonumber(before)
        if old then call('RPOP', log) end
      until not old
    end
  end
  return #keys
end

-- Those of a space or a group, as `selected` takes them.
function commands.scan()
  local keys = {}
  if args.owners then
    local owners = args.owners
    if #owners == 0 then
      owners = call('ZRANGE', P .. 'owners', 0, -1)
      owners[#owners + 1] = ''
    end
    local start = args.space .. '\0'
    for _, owner in ipairs(owners) do
      for _, key in ipairs(call('ZRANGE', P .. 'holds:' .. owner, 0, -1)) do
        if key:sub(1, #start) == start then keys[#keys + 1] = key end
      end
    end
  else
    local made = P .. 'made:' .. args.space .. (args.group and '\0' .. args.group or '')
    local first, step = 0, args.last or 1000
    repeat
      local some = call('ZREVRANGE', made, first, first + step - 1)
      for _, key in ipairs(some) do
        if not args.free or call('HGET', P .. 'record:' .. key, 'owner') == '' then keys[#keys + 1] = key end
      end
      first = first + step
    until #some < step or (args.last and #keys >= args.last)
  end
  return all_told({}, keys)
end

-- What was changed in these spaces since; and up to which number that is all.
function commands.changes()
  local reply = {call('GET', P .. 'revision')}
  for _, space in ipairs(args.spaces) do
    for _, key in ipairs(call('ZRANGEBYSCORE', P .. 'changes:' .. space, '(' .. args.since, '+inf')) do
      local row, value = told(key), call('HGET', P .. 'parts:' .. key, 'value\0000')
      -- Of a new value who is told of it would ask next.
      if value and #value <= args.small and tonumber(value:match('^%d+')) > tonumber(args.since) then
        row[#row + 1] = value
      end
      reply[#reply + 1] = row
    end
  end
  return reply
end

-- What the dead have left; what has expired goes.
function commands.look()
  local reply, instant = {}, now()
  if not was_away(instant) then
    for _, owner in ipairs(call('ZRANGEBYSCORE', P .. 'owners', '-inf', exact(instant))) do
      local keys = owner ~= args.me and call('ZRANGE', P .. 'holds:' .. owner, 0, -1) or {}
      if #keys == 0 then
        call('ZREM', P .. 'owners', owner)
      elseif tonumber(call('ZSCORE', P .. 'owners', owner)) > 0 then  -- nobody has told of it
        call('ZADD', P .. 'owners', 0, owner)
        call('PUBLISH', P .. 'bell', args.me .. ' left')
      end
      all_told(reply, keys)
    end
  end
  sweep(args.now)
  return reply
end

function commands.sweep() return sweep(args.now) end

function commands.trim()
  local name = 'idle:' .. args.space .. (args.group and '\0' .. args.group or '')
  local count, total = call('ZCARD', P .. name), tonumber(call('HGET', P .. 'bytes', name) or 0)
  local most, room = args.entries or math.huge, args.size or math.huge
  if count <= most and total <= room then return 0 end
  local there = {}
  for place, member in ipairs(call('ZRANGE', P .. name, 0, -1)) do
    local key = member:sub(17)
    local size = tonumber(call('HGET', P .. 'record:' .. key, 'size'))
    if args.larger or size <= room then
      there[#there + 1] = {key, size}
    else
      count, total = count - 1, total - size
    end
  end
  local kept = args.space .. '\0' .. args.keep
  for _, each in ipairs(there) do
    if count <= most and total <= room then return 1 end
    if each[1] ~= kept then
      erase(each[1], get(each[1]))
      count, total = count - 1, total - each[2]
    end
  end
  return 1
end

function commands.use()
  for _, name in ipairs(args.names) do
    local key = args.space .. '\0' .. name
    local old, new = get(key), get(key)
    if old and tonumber(old.used ~= '' and old.used or 0) < tonumber(args.now) then
      new.used = args.now
      index(key, old, new)
      call('HSET', P .. 'record:' .. key, 'used', args.now)
    end
  end
  return 1
end

function commands.watch()
  for _, each in ipairs(args.watched) do
    local watch, sessions = P .. 'watch:' .. each[1], each[2]
    if sessions > 0 then call('HSET', watch, args.me, sessions) else call('HDEL', watch, args.me) end
  end
  return 1
end

function commands.watchers()
  local watch, count = P .. 'watch:' .. args.key, 0
  local found = call('HGETALL', watch)
  for place = 1, #found, 2 do
    local owner, sessions = found[place], found[place + 1]
    if not alive(owner) then
      call('HDEL', watch, owner)
    elseif owner ~= args.me then
      count = count + sessions
    end
  end
  return count
end

if ARGV[1] ~= 'join' then
  local id, last, run = unpack(call('MGET', KEYS[1], P .. 'revision', P .. 'run'))
  if id ~= ARGV[2] or not last or tonumber(last) < tonumber(ARGV[3]) or run ~= this_run() then return 'lost' end
end
return commands[ARGV[1]]()
