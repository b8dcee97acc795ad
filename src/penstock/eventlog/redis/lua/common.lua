-- What the scripts share; it stands before each of them. All keys of a bucket begin with its base, KEYS[1], whose hash
-- tag keeps them in one slot:
--
--   BASE:lease:TOKEN  string  that a process lives, and the number of its latest report; gone with the lease
--   BASE:epoch        string  the number of the latest lease
--   BASE:stream:ID    hash    what is known of a stream
--   BASE:log:ID       stream  its batches, each under EPOCH-LAST SEQUENCE
--   BASE:bucket:ID    string  the bucket of a stream with a key, where its id is not of that one
--   BASE:key:OWNER:…  string  the id of the latest stream of a key
--   BASE:readers:ID   hash    by process: how many read it, and the cursor of the furthest
--   BASE:inbox:TOKEN  stream  what a process is to hear: stops, readers
--   BASE:running      zset    ids of what runs, by when it was opened [us]
--   BASE:ended        zset    ids of what has ended, by when it will be forgotten [ms]

local base = KEYS[1]

local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function text(number)
  return string.format('%.0f', number)
end

local function lives(token)
  return redis.call('EXISTS', base .. ':lease:' .. token) == 1
end

local function tell(token, ...)
  local inbox = base .. ':inbox:' .. token
  redis.call('XADD', inbox, 'MAXLEN', '~', '4096', '*', ...)
  redis.call('PEXPIRE', inbox, 3600000)
end

local function pointer(owner, key)
  return base .. ':key:' .. #owner .. ':' .. owner .. ':' .. key
end

-- The one end of a stream that has none. From here on it is kept for its age, and no longer.
local function finish(id, reason, detail)
  local stream = base .. ':stream:' .. id
  local known = redis.call('HMGET', stream, 'epoch', 'last', 'offset', 'age', 'owner', 'key')
  local age = tonumber(known[4])
  local time = now()
  redis.call('XADD', base .. ':log:' .. id, known[1] .. '-' .. text(known[2] + 1), 'e', reason, 'd', detail, 'o', known[3])
  redis.call('HSET', stream, 'reason', reason, 'detail', detail, 'ended', text(time))
  redis.call('ZREM', base .. ':running', id)
  redis.call('ZADD', base .. ':ended', time + age, id)
  redis.call('DEL', base .. ':readers:' .. id)
  redis.call('PEXPIRE', stream, age)
  redis.call('PEXPIRE', base .. ':log:' .. id, age)
  if known[6] then
    local key = pointer(known[5], known[6])
    if redis.call('GET', key) == id then
      redis.call('PEXPIRE', key, age)
    end
  end
end

-- Ends a stream whose producer is gone; whether it has ended.
local function settle(id)
  local known = redis.call('HMGET', base .. ':stream:' .. id, 'lease', 'reason')
  if known[1] and not known[2] and not lives(known[1]) then
    finish(id, 'producer_lost', '')
    return true
  end
  return not known[1] or known[2]
end
