-- Reads batches of a stream; one whose producer is gone is ended first.
--
-- ARGV: id, cursor, "" or the offset to read from instead, how many records and bytes are wanted
-- Returns the stream's fields, and of each batch its last sequence and the batch; none where they begin with evicted
-- ones. Or nothing, where there is no stream, or the store has lost what was not evicted: then the stream is ended.

local id, offset = ARGV[1], tonumber(ARGV[3])
local wanted, room = tonumber(ARGV[4]), tonumber(ARGV[5])
local stream, log = base .. ':stream:' .. id, base .. ':log:' .. id

settle(id)
local known = redis.call('HMGET', stream, 'epoch', 'last', 'dropped', 'dropped_offset', 'offset')
if not known[1] then
  return {}
end
local row, last = redis.call('HGETALL', stream), tonumber(known[2])

local function from(sequence, count)
  return redis.call('XRANGE', log, known[1] .. '-' .. text(sequence), known[1] .. '-' .. known[2], 'COUNT', count)
end

local function last_of(entry)
  return string.match(entry[1], '%d+$')
end

local function lost()
  if redis.call('HEXISTS', stream, 'reason') == 0 then
    finish(id, 'producer_lost', '')
  end
  return {}
end

local function begin_of(entry)
  local _, records = struct.unpack('>I8I4', entry[2][2])
  return last_of(entry) + 1 - records
end

local first = ARGV[2] + 1
if offset then
  if offset < tonumber(known[4]) or offset >= tonumber(known[5]) then
    return { row, {} }
  end
  -- Batches are found by sequence only: halve the sequences until there is the first that ends beyond the offset.
  local high = last
  first = known[3] + 1
  while first < high do
    local middle = math.floor((first + high) / 2)
    local entry = from(middle, 1)[1]
    if not entry then
      return lost()
    end
    if struct.unpack('>I8', entry[2][2]) > offset then
      high = middle
    else
      first = last_of(entry) + 1
    end
  end
elseif first <= tonumber(known[3]) or first > last then
  return { row, {} }
end

local batches, count = {}, 4
while first <= last and wanted > 0 and room > 0 do
  local entries = from(first, count)
  if #entries == 0 or #batches == 0 and begin_of(entries[1]) > first then
    return lost()
  end
  for _, entry in ipairs(entries) do
    local sequence, batch = last_of(entry), entry[2][2]
    batches[#batches + 1] = sequence
    batches[#batches + 1] = batch
    room = room - #batch
    wanted = wanted - (sequence + 1 - first) -- of the first batch, those that come before the cursor are not
    first = sequence + 1
  end
  count = math.min(2 * count, 64)
end
return { row, batches }
