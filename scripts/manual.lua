-- For scripts/manual: a page of the book as a man page. Its title becomes the section NAME, links to other pages become
-- references to man pages.

local function stem(target)
  return target:match("([^/]+)%.md")
end

function Link(link)
  local page = stem(link.target)
  if page == "introduction" then
    return pandoc.Inlines { pandoc.Strong "sealdisk", "(7)" }
  elseif page then
    return pandoc.Inlines(link.content) .. { " (", pandoc.Strong("sealdisk-" .. page), "(7))" }
  elseif link.target:sub(1, 1) == "#" then
    return link.content
  end
end

function Image(image)
  return image.caption
end

-- Comments that scripts/tutorial reads.
function RawBlock()
  return {}
end

function Pandoc(document)
  local name = pandoc.utils.stringify(document.meta.title)
  local blocks = pandoc.Blocks {}
  for _, block in ipairs(document.blocks) do
    if block.t ~= "Header" then
      blocks:insert(block)
    elseif block.level == 1 then
      local about = pandoc.utils.stringify(block.content)
      blocks:insert(pandoc.Header(1, "NAME"))
      blocks:insert(pandoc.Para { pandoc.Str(name), pandoc.Space(), pandoc.Str "-", pandoc.Space(), pandoc.Str(about) })
      blocks:insert(pandoc.Header(1, "DESCRIPTION"))
    else
      block.level = block.level - 1
      blocks:insert(block)
    end
  end
  document.blocks = blocks
  return document
end
