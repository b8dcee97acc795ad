-- Stores what a flush has for the streams of one bucket.
--
-- ARGV: token, ms to keep what runs, and for each stream:
--   id, its last sequence in the store, "" | "=" | "+" and the final head, how many batches,
--   for each batch: its last sequence, the offset of its end, the batch;
--   "" or the reason of its end, the end's detail, "" or the sequence up to which records go, and the offset there
-- Returns -1 if the lease ran out; else the ids of the streams that can take nothing more, and by id the last sequence of
-- those of which only so much is stored. All else is.
--
-- What was stored by a call whose answer was lost is there already, and counts as stored. Where that ended within a batch
-- of this call, the rest is for another call: no record is in two batches. A call that comes late, after one that was sent
-- in its place, changes nothing.

local token, keep = ARGV[1], ARGV[2]

if not lives(token) then
  return -1
end

local function store(id, expected, start, first, batches, reason, detail, cut, cut_offset)
  local stream, log = base .. ':stream:' .. id, base .. ':log:' .. id
  local known = redis.call('HMGET', stream, 'lease', 'reason', 'last', 'epoch', 'started', 'dropped')
  if known[1] ~= token then
    return 'refused'
  end
  if known[2] then -- by a call whose answer was lost, or by others
    local ours = batches > 0 and ARGV[first + 3 * (batches - 1)] or text(expected)
    return known[2] == reason and known[3] == ours and 'stored' or 'refused'
  end
  local last, epoch = tonumber(known[3]), known[4]
  if last < expected then -- the store has lost what it had acknowledged
    finish(id, 'producer_lost', '')
    return 'refused'
  end
  if start ~= '' and not known[5] then
    redis.call('HSET', stream, 'started', '1')
    if start ~= '=' then
      redis.call('HSET', stream, 'head', string.sub(start, 2))
    end
    redis.call('XADD', log, epoch .. '-0', 's', start)
    redis.call('PEXPIRE', log, keep)
  end
  local before, offset = expected, nil
  for at = first, first + 3 * (batches - 1), 3 do
    local sequence = tonumber(ARGV[at])
    if sequence > last then
      if before < last then
        return 'partly', text(last)
      end
      redis.call('XADD', log, epoch .. '-' .. ARGV[at], 'b', ARGV[at + 2])
      last, offset = sequence, ARGV[at + 1]
    end
    before = sequence
  end
  if offset then
    redis.call('HSET', stream, 'last', text(last), 'offset', offset)
  end
  if cut ~= '' and tonumber(cut) > tonumber(known[6]) then
    redis.call('XTRIM', log, 'MINID', epoch .. '-' .. text(cut + 1))
    redis.call('HSET', stream, 'dropped', cut, 'dropped_offset', cut_offset)
  end
  if reason ~= '' then
    finish(id, reason, detail)
  end
  return 'stored'
end

local refused, partly = {}, {}
local at = 3
while at <= #ARGV do
  local id, batches = ARGV[at], tonumber(ARGV[at + 3])
  local first = at + 4
  local rest = first + 3 * batches
  local became, last = store(id, tonumber(ARGV[at + 1]), ARGV[at + 2], first, batches, unpack(ARGV, rest, rest + 3))
  if became == 'refused' then
    refused[#refused + 1] = id
  elseif became == 'partly' then
    partly[#partly + 1] = id
    partly[#partly + 1] = last
  end
  at = rest + 4
end
return { refused, partly }
